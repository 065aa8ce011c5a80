"""The facts about this machine that stand beside every result: without them a time means nothing."""

from __future__ import annotations

import os
import platform
import re
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from lipbridge.version import __version__

#: Distributions whose versions can change a result. Those that are not installed are left out.
_PACKAGES = (
    *("torch", "numpy", "safetensors", "cvxpy", "scs", "highspy", "auto-LiRPA", "onnx", "onnxruntime"),
    "scikit-learn",
)


def machine_facts(threads: int | None = None) -> dict[str, object]:
    """Versions, processor, cores, threads, BLAS, load and date, ready for JSON.

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
        "blas": _blas(),
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


def gpu_peak_bytes() -> int | None:
    """The most memory that this process's tensors took on all its CUDA or ROCm devices, in bytes; None without one."""
    if not torch.cuda.is_available():
        return None
    if not torch.cuda.is_initialized():
        return 0
    return sum(torch.cuda.max_memory_allocated(device) for device in range(torch.cuda.device_count()))


def forget_gpu_peak() -> None:
    """:func:`gpu_peak_bytes` counts from now on: another piece of work begins in this process."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        for device in range(torch.cuda.device_count()):
            torch.cuda.reset_peak_memory_stats(device)


def _physical_memory() -> int | None:
    try:
        return psutil.virtual_memory().total
    except (psutil.Error, OSError, RuntimeError):  # a container may hide it
        return None


def _blas() -> str:
    """What multiplies matrices for torch and for numpy: its order of summation can change a last digit."""
    found = re.search(r"\bBLAS_INFO=(\w+)", torch.__config__.show())
    built: Any = np.show_config(mode="dicts") or {}
    numpy: dict[str, Any] = built.get("Build Dependencies", {}).get("blas", {})
    names = {"torch": found[1] if found else "", "numpy": f"{numpy.get('name', '')} {numpy.get('version', '')}".strip()}
    return ", ".join(f"{package} with {name}" for package, name in names.items() if name)


def _versions() -> dict[str, str]:
    found: dict[str, str] = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
