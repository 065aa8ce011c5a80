"""Random small modules: captured and right, refused, wrong or crashed, by operator.

    python -m benchmarks.fuzz_capture [--count 300] [--seed 0] [--thorough] [--findings FILE]

Modules are drawn by ``tests.support.fuzz_modules`` and judged by ``tests.support.fuzz_check``. Exits with 1 if one is
wrong or crashed.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections import Counter
from pathlib import Path

import torch

from tests.support.fuzz_check import judge
from tests.support.fuzz_modules import draw_module
from tests.support.fuzz_penalty import judge_penalty

KINDS = ("right", "refused", "wrong", "crashed")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--thorough", action="store_true", help="also search lower bounds")
    parser.add_argument("--penalty", action="store_true", help="judge TrivialBoundPenalty instead")
    parser.add_argument("--findings", type=Path, help="write wrong and crashed modules here, as they are found")
    parser.add_argument("--table", action="store_true", help="print the counts of every operator")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    totals: Counter[str] = Counter()
    by_operator: dict[str, Counter[str]] = {}
    unread: Counter[str] = Counter()  # refusals that stand in for an exception: something to mend or to word
    start = time.perf_counter()
    for seed in range(arguments.seed, arguments.seed + arguments.count):
        drawn = draw_module(seed, trainable=arguments.penalty)
        outcome = judge_penalty(drawn) if arguments.penalty else judge(drawn, thorough=arguments.thorough)
        totals[outcome.kind] += 1
        for operator in set(drawn.operators):
            by_operator.setdefault(operator, Counter())[outcome.kind] += 1
        if outcome.kind == "refused" and "cannot be" in outcome.reason:
            unread[re.sub(r"`[^`]*`|[-0-9.]+", "_", outcome.reason)[:150]] += 1
        if outcome.kind in ("wrong", "crashed"):
            text = f"\n## {outcome.kind}: {outcome.reason}\n{drawn}"
            if arguments.findings:
                with arguments.findings.open("a") as file:
                    file.write(text)
            else:
                print(text)
    if arguments.table:
        for reason, count in unread.most_common():
            print(f"{count:5d} {reason}")
        print(f"\n{'operator':46s}" + "".join(f"{kind:>9s}" for kind in KINDS))
        for operator in sorted(by_operator):
            print(f"{operator:46s}" + "".join(f"{by_operator[operator][kind]:9d}" for kind in KINDS))
    print(", ".join(f"{kind} {totals[kind]}" for kind in KINDS), f"in {time.perf_counter() - start:.0f} s;", end=" ")
    print(f"{len(by_operator)} operators")
    sys.exit(1 if totals["wrong"] + totals["crashed"] else 0)


if __name__ == "__main__":
    main()
