"""A captured module is as it was: weights to the bit, modes, attributes, hooks, gradients, random numbers."""

from __future__ import annotations

import random
from collections import deque
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensor
from torch.nn.utils import prune
from torch.nn.utils import spectral_norm as old_spectral_norm
from torch.nn.utils import weight_norm as old_weight_norm

import lipbridge
from lipbridge.errors import LipbridgeError


class Merged(nn.Module):
    """A low-rank update that is added to the weight in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.base, self.merged = nn.Linear(4, 4), False
        self.down, self.up = nn.Parameter(torch.randn(2, 4)), nn.Parameter(torch.randn(4, 2))

    def train(self, mode: bool = True) -> Merged:
        super().train(mode)
        if mode == self.merged:
            self.base.weight.data += (-1 if mode else 1) * (self.up @ self.down)
            self.merged = not mode
        return self

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) if self.merged else self.base(x) + x @ self.down.T @ self.up.T


def _snapshot(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def _unchanged(module: nn.Module, before: dict[str, Tensor]) -> bool:
    after = module.state_dict()
    return before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("mode", [True, False])
def test_a_module_that_works_in_train(mode: bool) -> None:
    module = Merged().train(mode)
    before = _snapshot(module)
    merged = lipbridge.trivial_bound(module, input_shape=(4,)).value
    assert _unchanged(module, before)
    assert (module.training, module.merged) == (mode, not mode)
    module.eval()
    assert merged == lipbridge.trivial_bound(module, input_shape=(4,)).value
    module.train()
    module(torch.randn(2, 4)).sum().backward()
    assert module.down.grad is not None


class Keeps(nn.Module):
    """Attributes that forward writes."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.seen, self.last, self.calls = nn.Linear(4, 3), [], None, 0
        self.register_buffer("steps", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.last = self.layer(x)
        self.seen.append(self.last)
        return self.last


def test_attributes_modes_gradients_and_random_numbers() -> None:
    module = Keeps()
    module.layer.eval()
    module.layer.weight.grad = torch.ones(3, 4)
    gradient = module.layer.weight.grad
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    expected = (random.random(), np.random.rand(), torch.rand(1).item())
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    lipbridge.capture(module, (4,))
    assert expected == (random.random(), np.random.rand(), torch.rand(1).item())
    assert (module.training, module.layer.training) == (True, False)
    assert (module.seen, module.last, module.calls) == ([], None, 0)
    assert module.layer.weight.grad is gradient


def test_what_hooks_write_to_is_put_back() -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    listed: list[Any] = []
    named: dict[str, Any] = {"first": []}
    recent: deque[Any] = deque(maxlen=3)

    class Recorder:
        def __init__(self) -> None:
            self.values: list[Any] = []

        def __call__(self, layer: nn.Module, inputs: Any, output: Any) -> None:
            self.values.append(output)

    def store(key: str, layer: nn.Module, inputs: Any, output: Any) -> None:
        named[key].append(output)

    recorder = Recorder()
    module[0].register_forward_hook(lambda layer, inputs, output: listed.append(output))
    module[0].register_forward_hook(partial(store, "first"))
    module[1].register_forward_hook(recorder)
    module[2].register_forward_pre_hook(lambda layer, inputs: recent.append(inputs))
    lipbridge.trivial_bound(module)
    lipbridge.TrivialBoundPenalty(module)
    assert (listed, named, list(recent), recorder.values) == ([], {"first": []}, [], [])
    module(torch.randn(2, 4))
    assert len(listed) == len(named["first"]) == len(recent) == len(recorder.values) == 1


def test_a_failed_capture_leaves_no_trace_either() -> None:
    class Fails(Keeps):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).round()

    module = Fails()
    with pytest.raises(LipbridgeError):
        lipbridge.capture(module, (4,))
    assert (module.seen, module.last, module.calls, module.training) == ([], None, 0, True)


@pytest.mark.filterwarnings("ignore:.*weight_norm.*")
def test_old_hooks_that_compute_weights() -> None:
    module = nn.Sequential(
        old_weight_norm(nn.Linear(4, 5)), nn.ReLU(), old_spectral_norm(nn.Linear(5, 5)), nn.ReLU(), nn.Linear(5, 2)
    )
    prune.l1_unstructured(module[4], "weight", 0.5)
    before = _snapshot(module)
    penalty = lipbridge.TrivialBoundPenalty(module)
    assert _unchanged(module, before)
    held = [layer.weight for layer in module if isinstance(layer, nn.Linear)]
    assert not any(isinstance(weight, FakeTensor) for weight in held)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(1.5)
    assert penalty.bound().value == lipbridge.trivial_bound(module).value
    penalty().backward()
    weights = [p for name, p in module.named_parameters() if "bias" not in name]
    assert all(p.grad is not None and bool((p.grad != 0).any()) for p in weights)
