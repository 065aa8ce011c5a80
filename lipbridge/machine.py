"""The facts about this machine that stand beside every result: without them a time means nothing."""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil
import torch

from lipbridge.version import __version__

#: Distributions whose versions can change a result. Those that are not installed are left out.
_PACKAGES = (
    *("torch", "numpy", "safetensors", "cvxpy", "scs", "highspy", "auto-LiRPA", "onnx", "onnxruntime"),
    "scikit-learn",
)


def machine_facts(threads: int | None = None) -> dict[str, object]:
    """Versions, processor, cores, threads, load and date, ready for JSON.

    Args:
        threads: threads that each computation was given; torch's own number if not given.
    """
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "platform": platform.platform(),
        "processor": processor(),
        "cores": available_cores(),
        "threads": threads if threads is not None else torch.get_num_threads(),
        "memory": _physical_memory(),
        "load": [round(value, 2) for value in os.getloadavg()],
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "versions": {"python": platform.python_version(), "lipbridge": __version__, **_versions()},
    }


def available_cores() -> int:
    """The cores that this process may use, which a container or a scheduler can make fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def processor() -> str:
    """The processor's name as the system gives it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:  # not Linux
        pass
    return platform.processor() or platform.machine()


def _physical_memory() -> int | None:
    try:
        return psutil.virtual_memory().total
    except (psutil.Error, OSError, RuntimeError):  # a container may hide it
        return None


def _versions() -> dict[str, str]:
    found: dict[str, str] = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
