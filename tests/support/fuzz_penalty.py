"""The judge of a penalty: does it still speak of the module after its weights have changed, and does it push?"""

from __future__ import annotations

import math
import warnings
from typing import Any

import torch
from torch import Tensor, nn

import lipbridge
from lipbridge.errors import LipbridgeError
from tests.support.fuzz_check import NORMS, Outcome, Wrong, changed, state
from tests.support.fuzz_modules import FuzzModule

#: The live bound and that of a fresh capture are the same numbers in another order of operations, at most.
SAME = 1e-6
#: A bound that changes by less than this share along a direction may well be at its maximum or flat there.
FLAT = 1e-3


def judge_penalty(drawn: FuzzModule) -> Outcome:
    """Build a penalty of the module, perturb all that is stored, and compare with a fresh bound and with slopes."""
    norm = NORMS[drawn.seed % 3]
    module = drawn.build()
    before = state(module)
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(drawn.seed)
        try:
            before = state(module)
            penalty = lipbridge.TrivialBoundPenalty(module, norm, every=1, input_shape=drawn.shape)
            value = penalty()
        except LipbridgeError as error:
            difference = changed(before, module)
            return Outcome("wrong", difference) if difference else Outcome("refused", str(error))
        except Exception as error:
            return Outcome("crashed", f"{type(error).__name__}: {str(error).strip().splitlines()[:1]}")
        try:
            difference = changed(before, module)
            if difference:
                raise Wrong(difference)
            if value.ndim or not math.isfinite(float(value)):
                raise Wrong(f"the penalty is {value!r}")
            _follows(module, penalty, norm, drawn.shape)
            for _ in range(2):
                _perturb(module)
                _follows(module, penalty, norm, drawn.shape)
            _pushes(module, penalty, norm, drawn.shape)
        except Wrong as wrong:
            return Outcome("wrong", str(wrong))
        except LipbridgeError as error:
            return Outcome("refused", str(error))
        except Exception as error:
            return Outcome("crashed", f"{type(error).__name__}: {str(error).strip().splitlines()[:1]}")
    return Outcome("right")


@torch.no_grad()
def _perturb(module: nn.Module) -> None:
    """Other numbers everywhere, of the same signs in buffers (variances stay above zero)."""
    for parameter in module.parameters():
        if parameter.is_floating_point():
            parameter.mul_(0.6 + 0.8 * torch.rand_like(parameter)).add_(0.1 * torch.randn_like(parameter))
    for buffer in module.buffers():
        if buffer.is_floating_point():
            buffer.mul_(0.7 + 0.9 * torch.rand_like(buffer))


def _follows(module: nn.Module, penalty: Any, norm: Any, shape: tuple[int, ...]) -> None:
    """``bound()`` is a fresh ``trivial_bound``, to rounding."""
    fresh = lipbridge.trivial_bound(module, norm, input_shape=shape).value
    live = penalty.bound()
    # Its value is an estimate from above, by a norm of high order of each layer.
    value = float(penalty().detach())
    if not 0.7 * fresh - 1e-300 <= value <= 10.0 * fresh + 1e-30:  # what underflow may have lost is in the bound
        raise Wrong(f"the penalty's value is {value!r} in l_{norm}, the bound {fresh!r}")
    if not (live.proved and abs(live.value - fresh) <= SAME * abs(fresh)):
        raise Wrong(f"bound() says {live.value!r} (proved {live.proved}) in l_{norm}, a fresh trivial_bound {fresh!r}")


def _pushes(module: nn.Module, penalty: Any, norm: Any, shape: tuple[int, ...]) -> None:
    """A parameter that the bound depends on has a gradient, and its slope is that of the penalty's own values."""
    parameters = {name: p for name, p in module.named_parameters() if p.requires_grad and p.numel()}
    for parameter in parameters.values():
        parameter.grad = None
    value = penalty()
    if value.requires_grad:
        value.backward()
    for name, parameter in list(parameters.items())[:4]:
        direction = torch.randn_like(parameter)
        slope = _slope(lambda: lipbridge.trivial_bound(module, norm, input_shape=shape).value, parameter, direction)
        bound = lipbridge.trivial_bound(module, norm, input_shape=shape).value
        if abs(slope) <= FLAT * bound:
            continue
        if parameter.grad is None or not bool(parameter.grad.any()):
            raise Wrong(f"`{name}` has no gradient; the bound {bound:.4g} changes at a rate of {slope:.4g} along it")
        found = float((parameter.grad * direction).sum())
        own = [_slope(lambda: float(penalty().detach()), parameter, direction, step) for step in (1e-2, 1e-3)]
        smooth = abs(own[0] - own[1]) <= 0.02 * abs(own[1])  # else a kink is near
        if smooth and abs(found - own[1]) > 0.05 * abs(own[1]) + 1e-3 * bound:
            raise Wrong(f"the gradient of `{name}` says {found:.5g} along a direction, the values {own[1]:.5g}")


@torch.no_grad()
def _slope(value: Any, parameter: Tensor, direction: Tensor, step: float = 1e-3) -> float:
    saved = parameter.detach().clone()
    ends: list[float] = []
    for sign in (1.0, -1.0):
        parameter.copy_(saved + sign * step * direction)
        ends.append(float(value()))
    parameter.copy_(saved)
    return (ends[0] - ends[1]) / (2.0 * step)


__all__ = ["judge_penalty"]
