"""Rows of studies made by hand: every kind, status and network that a figure, a table or a page has to show."""

from __future__ import annotations

import math
import random
from typing import Any

Row = dict[str, Any]

#: Names of networks, verifiers and messages that break what does not escape them.
HOSTILE = (
    "<script>alert(1)</script>",
    "</script><img src=x onerror=alert(2)>",
    "a & b \"quoted\" 'too' $x^2$ _under \\textbf{50 %} #1 {brace} ~tilde ^hat",
    "naïve-Ünïcode-网络-😀-\u202eright to left",
    "long-" * 40,
    "=HYPERLINK(1)",
    "_underscore_first",
)

_CHANCE = random.Random(7)


def common(kind: str, network: str, **changes: Any) -> Row:
    """The keys that every row has."""
    row: Row = {
        **{"cell": f"{_CHANCE.getrandbits(64):016x}", "kind": kind, "study": "toy", "network": network},
        **{"group": network, "seed": None, "settings": {}, "norm": "2", "status": "ok", "detail": ""},
        **{"seconds": 1.0, "total_seconds": 1.5, "cpu_seconds": 0.9, "memory": 2**28, "gpu_memory": None},
        **{"threads": 1, "load": 0.7, "host": "box", "date": "2026-11-27T20:00:00+00:00", "version": "1.0"},
    }
    return row | changes


def training(network: str, accuracy: float | None = 0.98, value: float | None = 4.0, **changes: Any) -> Row:
    """A row of a training."""
    more: Row = {
        **{"data": "digits", "arch": "dense", "architecture": "64–64–10, abs, no bias", "parameters": 4736},
        **{"accuracy": accuracy, "value": value, "proved": value is not None, "bound_before_rescaling": value},
        **{"penalty": 0.05, "epochs": 20, "epoch_seconds": 0.1, "folder": f"networks/{network}"},
    }
    return common("training", network, **(more | changes))


def model(network: str, **changes: Any) -> Row:
    """A row of an external model."""
    more: Row = {
        **{"data": "digits", "architecture": "1×8×8–8×6×6–10, relu, MaxPool", "parameters": 810},
        **{"accuracy": 0.95, "path": f"models/{network}.onnx"},
    }
    return common("model", network, **(more | changes))


def bound(network: str, verifier: str = "trivial", value: float | None = 4.0, **changes: Any) -> Row:
    """A row of a verifier's bound."""
    more: Row = {
        **{"output_norm": "2", "verifier": verifier, "verifier_label": verifier, "method": f"{verifier}'s method"},
        **{"side": "upper", "value": value, "proved": True, "region": "everywhere", "quantity": "lipschitz"},
        **{"tightness": None if value is None else value / 3.9, "certified_accuracy": None, "extra": {}},
        **{"options": {}, "time_limit": 300.0, "memory_limit": 2**33, "witness": None},
    }
    return common("bound", network, **(more | changes))


def certificate(network: str, radius: float, certified: float | None, verifier: str = "trivial", **changes: Any) -> Row:
    """A row of the points that a verifier certifies."""
    more: Row = {
        **{"verifier": verifier, "verifier_label": verifier, "options": {}, "data": "digits", "radius": radius},
        **{"points": 200, "accuracy": 0.98, "certified_accuracy": certified},
    }
    return common("certificate", network, **(more | changes))


def grid(
    *,
    penalties: tuple[float, ...] = (0.0, 0.01, 0.05, 0.1),
    activations: tuple[str, ...] = ("abs", "relu"),
    widths: tuple[str, ...] = ("64,64",),
    seeds: int = 3,
    verifiers: tuple[str, ...] = ("trivial", "lipsdp-fast", "auto_lirpa"),
    radii: tuple[float, ...] = (0.1, 0.25, 0.5),
    study: str = "toy",
) -> list[Row]:
    """A study of dense networks as the real ones are: accuracy falls and tightness improves with the penalty."""
    rows: list[Row] = []
    chance = random.Random(3)
    for activation in activations:
        for layers in widths:
            for penalty in penalties:
                for seed in range(seeds):
                    rows += _network(study, activation, layers, penalty, seed, verifiers, radii, chance)
    return rows


def _network(
    study: str,
    activation: str,
    widths: str,
    penalty: float,
    seed: int,
    verifiers: tuple[str, ...],
    radii: tuple[float, ...],
    chance: random.Random,
) -> list[Row]:
    group = f"dense-{activation}-{widths.replace(',', '-')}-p{penalty:g}"
    wide = int(widths.split(",")[0])
    waste = 1.0 if activation == "abs" else 1.6
    tightness = 1.004 + 0.02 * waste / (1 + 40 * penalty) if penalty else 4.0 * waste * (wide / 64) ** 0.5
    tightness *= 1 + 0.01 * chance.random()
    truth = 3.0 / (0.2 + penalty) ** 0.6 * (1 + 0.03 * chance.random())
    accuracy = 0.985 - 0.1 * penalty - (0.004 if activation == "relu" else 0.0) - 0.003 * chance.random()
    shared: Row = {
        "study": study,
        "group": group,
        "seed": seed,
        "settings": {
            **{"data": "digits", "arch": "dense", "widths": widths, "activation": activation, "bias": False},
            "penalty": penalty,
        },
    }
    name = f"{group}-s{seed}"
    rows = [
        training(
            name, accuracy, truth * tightness, **shared, penalty=penalty, architecture=f"64–{widths}–10, {activation}"
        )
    ]
    rows.append(bound(name, "witness", truth, side="lower", tightness=None, seconds=0.4, **shared))
    factors = {"trivial": 1.0, "lipsdp-fast": 0.6, "lipsdp": 0.6, "auto_lirpa": 2.0, "exact": 0.0, "eclipse-fast": 0.9}
    times = {
        "trivial": 1e-3,
        "lipsdp-fast": 0.2,
        "lipsdp": 20.0,
        "auto_lirpa": 3.0,
        "exact": 90.0,
        "eclipse-fast": 0.02,
    }
    for verifier in verifiers:
        above = 1 + (tightness - 1) * factors.get(verifier, 1.0)
        seconds = times.get(verifier, 1.0) * (wide / 64) ** (2.5 if verifier.startswith("lipsdp") else 1.2)
        if seconds > 300:
            late = {"status": "timeout", "detail": "the time limit of 300 s", "seconds": 300.0, "tightness": None}
            rows.append(bound(name, verifier, None, **late, **shared))
            continue
        rows.append(
            bound(
                name,
                verifier,
                truth * above,
                tightness=above,
                seconds=seconds * (0.8 + 0.4 * chance.random()),
                proved=verifier != "auto_lirpa",
                side="exact" if verifier == "exact" else "upper",
                **shared,
            )
        )
    for radius in radii:
        share = max(0.0, accuracy - 0.5 * radius * math.sqrt(truth * tightness / 4))
        rows.append(certificate(name, radius, share, accuracy=accuracy, **shared))
    return rows


def strange() -> list[Row]:
    """Everything that goes wrong, and every kind of network, in one study."""
    rows = [
        training("dense", 0.97, 3.5),
        training("conv", 0.99, 8.0, arch="conv-small", architecture="1×8×8–8×6×6–10, relu, MaxPool"),
        training("broken", None, None, status="failed", detail="TrainingError: the loss is not a number", penalty=None),
        model("onnx"),
        model("onnx-unknown", accuracy=None, data=None, parameters=None, architecture=""),
        bound("dense", "trivial", 3.5, tightness=1.0),
        bound("dense", "exact", 3.5, tightness=1.0, side="exact", seconds=12.0),
        bound("dense", "witness", 3.5, side="lower", tightness=None),
        bound("conv", "liar", 1.0, status="unsound", proved=False, tightness=0.25, detail="a witness proves 4"),
        bound("conv", "trivial", 8.0, tightness=2.0, seconds=0.002),
        bound("onnx", "trivial", 8.0, tightness=2.2, seconds=0.002),
        bound("onnx", "loose", 900.0, tightness=240.0, proved=False, seconds=55.0),
        certificate("dense", 0.5, 0.8),
        certificate("dense", 1.0, None, status="unsupported", detail="no certificates here"),
    ]
    for status, detail in (
        ("timeout", "the time limit of 300 s"),
        ("memory", "the memory limit of 8 GiB"),
        ("unsupported", "MaxPool has no rule"),
        ("missing", 'pip install "lipbridge[sdp]"'),
        ("failed", "RuntimeError: SIGSEGV"),
        ("failed", "RuntimeError: SIGSEGV"),
    ):
        rows.append(
            bound("onnx", f"tool-{status}", None, status=status, detail=detail, seconds=None, memory=None, proved=False)
        )
    return rows


def hostile() -> list[Row]:
    """Names, methods and messages that try to be markup, formulas of a spreadsheet, or mathematics."""
    rows: list[Row] = []
    for place, name in enumerate(HOSTILE):
        settings = {"activation": name, "penalty": 0.1 * place}
        rows.append(training(name, 0.9, 3.0 + place, settings=settings, architecture=name, data=name))
        rows.append(bound(name, "trivial", 3.0 + place, tightness=1.5, settings=settings))
        rows.append(bound(name, name, 3.0 + place, tightness=1.2, method=name, detail=name, settings=settings))
        rows.append(bound(name, "failing", None, status="failed", detail=name, settings=settings))
        rows.append(certificate(name, 0.5, 0.5, settings=settings))
    return rows


def epochs(network: str, count: int = 20) -> list[Row]:
    """Lines of metrics.jsonl."""
    return [
        {"network": network, "epoch": e, "loss": 2.0 / e, "accuracy": 1 - 0.5 / e, "bound": 5 + 30.0 / e}
        for e in range(1, count + 1)
    ]
