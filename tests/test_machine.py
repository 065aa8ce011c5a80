"""Facts about the machine: GPU memory is told where there is a GPU, and is None elsewhere."""

from __future__ import annotations

import pytest
import torch

from lipbridge.machine import forget_gpu_peak, gpu_peak_bytes, machine_facts


def test_without_a_gpu_its_memory_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu_peak_bytes() is None
    forget_gpu_peak()


def test_the_peaks_of_all_gpus_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    forgotten: list[int] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    assert gpu_peak_bytes() == 0
    forget_gpu_peak()
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 100 + device)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", forgotten.append)
    assert gpu_peak_bytes() == 201
    forget_gpu_peak()
    assert forgotten == [0, 1]


@pytest.mark.gpu
def test_a_tensor_on_a_gpu_counts() -> None:
    if not torch.cuda.is_available():
        pytest.skip("the accelerator is not one of CUDA or ROCm")
    forget_gpu_peak()
    kept = torch.zeros(2**20, device=torch.accelerator.current_accelerator())
    peak = gpu_peak_bytes()
    assert peak is not None
    assert peak >= kept.numel() * kept.element_size()


def test_facts_are_ready_for_json() -> None:
    facts = machine_facts(3)
    assert facts["threads"] == 3
    assert {"cores", "memory", "load", "versions"} <= facts.keys()
