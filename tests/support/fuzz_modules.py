"""Random small modules from a seed: one to five operations of torch's functional surface in a chain or a small DAG.

Half of them hold an operation that has no Lipschitz constant, or none that is known. Every module runs in eager mode on
a batch. The module is a function of the seed alone; its source is text, so a finding is repeated by pasting it.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from tests.support.fuzz_aten import OVERLOADS, aten_call
from tests.support.fuzz_draft import NAMESPACE, Draft, Unfit, fill
from tests.support.fuzz_templates import COMMON, LAYERS, RARE, TRAINABLE

#: Draws of one statement before another operator is tried.
TRIES = 12


@dataclass(frozen=True)
class FuzzModule:
    """A module as source; ``operators`` names the statements that it is made of."""

    seed: int
    shape: tuple[int, ...]
    source: str
    operators: tuple[str, ...]
    dtype: torch.dtype
    training: bool

    def build(self) -> nn.Module:
        """The module, with the same weights every time."""
        space = dict(NAMESPACE)
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.manual_seed(self.seed)
            exec(self.source, space)
            module: nn.Module = space["Net"]()
        return module.to(self.dtype).train(self.training)

    def __str__(self) -> str:
        mode = "train" if self.training else "eval"
        return f"# seed {self.seed}, input {self.shape}, {self.dtype}, {mode} mode\n{self.source}"


def draw_module(seed: int, *, trainable: bool = False) -> FuzzModule:
    """The module of a seed; it has run on batches of one and of three. ``trainable`` asks for parameters."""
    rng = random.Random(seed)
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        while True:
            module = _drawn(rng, seed, trainable)
            if module is not None and _runs(module) and not (trainable and not _trained(module)):
                return module


def _drawn(rng: random.Random, seed: int, trainable: bool) -> FuzzModule | None:
    draft = Draft(rng, _shape(rng))
    count = rng.choice((1, 1, 1, 2, 2, 2, 3, 3, 4, 5))
    rare = rng.randrange(count) if rng.random() < (0.1 if trainable else 0.5) else None
    for step in range(count):
        for _ in range(40):
            name, write = _statement(rng, step == rare, trainable)
            x = draft.live[-1] if rng.random() < 0.75 else rng.choice(draft.live)
            if any(draft.attempt(name, write, x) for _ in range(TRIES)):
                break
        else:
            return None
    last = (
        draft.live[-1] if rng.random() < 0.98 else rng.choice((f"({draft.live[-1]}, x)", f"{{'y': {draft.live[-1]}}}"))
    )
    dtype = rng.choice((torch.float32,) * 17 + (torch.float64,) * 2 + (torch.bfloat16,))
    return FuzzModule(seed, draft.shape, draft.source(last), tuple(draft.operators), dtype, training=rng.random() < 0.3)


def _shape(rng: random.Random) -> tuple[int, ...]:
    while True:
        rank = rng.choice((1, 1, 1, 2, 2, 3, 3, 3, 4))
        shape = tuple(rng.randint(1, 7) for _ in range(rank))
        if torch.Size(shape).numel() <= 64:
            return shape


def _statement(rng: random.Random, rare: bool, trainable: bool) -> tuple[str, Callable[[Draft, str], str]]:
    """An operator's name, and what writes it."""
    if rare:
        table = rng.choice((RARE, OVERLOADS))
    else:
        table = rng.choice((TRAINABLE, TRAINABLE, LAYERS, COMMON) if trainable else (LAYERS, COMMON, COMMON))
    if table is OVERLOADS:
        overload = rng.choice(OVERLOADS)
        return overload, lambda draft, x: aten_call(draft, x, overload)
    name, template = rng.choice(table)
    return name, lambda draft, x: _written(draft, x, name, template)


def _written(draft: Draft, x: str, name: str, template: str) -> str:
    if not template.startswith(("nn.", "L.", "lipbridge.")):
        return fill(template, draft, x)
    layer = draft.attribute(fill(template, draft, x), "layer")
    if name in ("nn.Bilinear", "nn.CosineSimilarity", "nn.PairwiseDistance"):
        return f"{layer}({x}, {x})"
    return f"{layer}({x}, {x}, {x})[0]" if name == "nn.MultiheadAttention" else f"{layer}({x})"


def _trained(drawn: FuzzModule) -> bool:
    return any(parameter.requires_grad for parameter in drawn.build().parameters())


def _runs(drawn: FuzzModule) -> bool:
    try:
        module = drawn.build().eval()
        for batch in (1, 3):
            module(torch.randn(batch, *drawn.shape, dtype=drawn.dtype))
    except Exception:
        return False
    return True


__all__ = ["FuzzModule", "Unfit", "draw_module"]
