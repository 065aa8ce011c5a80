"""Where a training run lives: the device, and the processes that share it."""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch import distributed as dist

from lipbridge import checks
from lipbridge.errors import InvalidArgument


def pick_device(name: str | torch.device = "auto") -> torch.device:
    """The device of that name; for ``auto`` the accelerator where there is one, otherwise the CPU.

    In a process of ``torchrun``, ``auto`` is this process's own accelerator (by ``LOCAL_RANK``).

    Raises:
        InvalidArgument: for a name that torch does not know or a device that this machine does not have.
    """
    kinds = str | torch.device
    if not isinstance(cast(object, name), kinds):
        raise InvalidArgument("device", "be auto, cpu, or an accelerator that this machine has", checks.told(name))
    if name == "auto":
        if not torch.accelerator.is_available():
            return torch.device("cpu")
        kind = torch.accelerator.current_accelerator()
        assert kind is not None
        return torch.device(kind.type, int(os.environ.get("LOCAL_RANK", "0")) % torch.accelerator.device_count())
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, ValueError) as error:
        raise InvalidArgument("device", "be auto, cpu, or an accelerator that this machine has", name) from error
    if device.type == "meta":
        raise InvalidArgument("device", "hold numbers (cpu, or an accelerator that this machine has)", name)
    return device


@dataclass(frozen=True)
class Workers:
    """The processes that train together: this one's rank and how many there are."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes and prints."""
        return self.rank == 0

    def total(self, value: Tensor) -> Tensor:
        """The sum of ``value`` over all processes."""
        if self.size > 1:
            cast(Any, dist).all_reduce(value)
        return value

    def wait(self) -> None:
        """Until all processes are here."""
        if self.size > 1:
            cast(Any, dist).barrier()


@contextmanager
def workers(device: torch.device) -> Generator[Workers]:
    """Join the process group that ``torchrun`` prepared, if there is one, and leave it at the end if joined here."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield Workers()
        return
    joined = not dist.is_initialized()
    if joined:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield Workers(dist.get_rank(), dist.get_world_size())
    finally:
        if joined:
            dist.destroy_process_group()
