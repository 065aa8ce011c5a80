"""Puts the cases of a property to Marabou, one by one: run by the Python that has maraboupy, with a job's file.

It prints ``unsat`` if none has a counterexample, ``sat`` and the counterexample if one has, ``timeout`` or ``unknown``
otherwise. Each case has its share of the seconds that are left, so that a hard one does not hide one that is ``sat``;
those that are open then share what is left once more.
"""

from __future__ import annotations

import json
import sys
import time
from importlib import import_module
from typing import Any


def main(arguments: list[str]) -> None:
    """Answer a job, or do nothing where none is given."""
    marabou: Any = import_module("maraboupy.Marabou")
    if not arguments:
        return None
    with open(arguments[0], encoding="utf-8") as file:
        job: dict[str, Any] = json.load(file)
    until = time.monotonic() + float(job["seconds"])
    left = [(box, case) for box in job["boxes"] for case in box["cases"]]
    unclear = False
    while left:
        still: list[tuple[dict[str, Any], dict[str, Any]]] = []
        for count, (box, case) in enumerate(left):
            seconds = (until - time.monotonic()) / (len(left) - count)
            if seconds <= 0.5:  # it takes whole seconds
                return _say("timeout")
            verdict = _solved(marabou, job, box, case, max(1, round(seconds)))
            if verdict == "sat":
                return None
            unclear = unclear or verdict == "unknown"
            if verdict == "timeout":
                still.append((box, case))
        left = still
    return _say("unknown" if unclear else "unsat")


def _solved(marabou: Any, job: dict[str, Any], box: dict[str, Any], case: dict[str, Any], seconds: int) -> str:
    network: Any = marabou.read_onnx(job["network"])
    inputs, outputs = network.inputVars[0].flatten(), network.outputVars[0].flatten()
    if len(inputs) != len(box["lower"]) or len(outputs) != job["outputs"]:
        raise SystemExit(f"it reads {len(inputs)} inputs and {len(outputs)} outputs")
    for variable, low, high in zip(inputs, box["lower"], box["upper"]):  # noqa: B905 (Pythons before 3.10)
        network.setLowerBound(variable, low)
        network.setUpperBound(variable, high)
    for row, limit in zip(case["rows"], case["limits"]):  # noqa: B905
        held = [(variable, factor) for variable, factor in zip(outputs, row) if factor]  # noqa: B905
        if held:
            network.addInequality([variable for variable, _ in held], [factor for _, factor in held], limit)
        elif limit < 0.0:
            return "unsat"
    options: Any = marabou.createOptions(verbosity=0, timeoutInSeconds=seconds)
    code, values, _ = network.solve(verbose=False, options=options)
    if code == "sat":
        numbers = [(f"X_{i}", values[v]) for i, v in enumerate(inputs)]
        numbers += [(f"Y_{i}", values[v]) for i, v in enumerate(outputs)]
        _say("sat\n(" + "\n".join(f"({name} {float(value)!r})" for name, value in numbers) + ")")
    return code.lower() if code in ("sat", "unsat", "TIMEOUT") else "unknown"


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
