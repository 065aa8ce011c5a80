"""A random module in the making: statements are tried on real tensors, and those that run are kept.

A statement is written from a template whose fields, e.g. ``{x}.narrow({d}, {i}, {n})``, are drawn for the value at
hand. What does not run is drawn again, so most arguments need not be made to fit: odd, negative and wrong ones are
tried too, and kept where torch takes them.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import lipbridge
from tests.support import fuzz_layers

#: What the sources of modules may name.
NAMESPACE: dict[str, Any] = {
    "torch": torch,
    "nn": nn,
    "F": F,
    "math": math,
    "lipbridge": lipbridge,
    "L": fuzz_layers,
    "aten": torch.ops.aten,
}

#: Inputs in a batch while a module is drawn: not the size that capture exports with, nor the judge's.
BATCH = 4
#: Entries of a value for one input, at most: Jacobians stay small.
LARGEST = 160


class Unfit(Exception):
    """A draw that has no sense for this value; draw again."""


class Draft:
    """The lines of a module so far, its values, and the random source of all choices."""

    def __init__(self, rng: random.Random, shape: tuple[int, ...]) -> None:
        self.rng = rng
        self.shape = shape
        self.init: list[str] = []
        self.body: list[str] = []
        self.operators: list[str] = []
        self.holder = nn.Module()
        x = torch.randn(BATCH, *shape)
        self.environment: dict[str, Any] = {**NAMESPACE, "self": self.holder, "x": x}
        self.live = ["x"]
        self.count = 0
        self.trial: list[str] = []  # lines of __init__ of the statement at hand

    # --- values and names -------------------------------------------------------------------------------------------

    def value(self, name: str) -> Tensor:
        return self.environment[name]

    def name(self, prefix: str) -> str:
        self.count += 1
        return f"{prefix}{self.count}"

    def attribute(self, expression: str, prefix: str = "w") -> str:
        """A new attribute of the module, made by ``expression`` in ``__init__``."""
        name = self.name(prefix)
        self.trial.append(f"self.{name} = {expression}")
        return f"self.{name}"

    def constant(self, shape: tuple[int, ...], kind: str | None = None) -> str:
        """A float constant of a shape: parameter, buffer, plain attribute, or written out in forward."""
        kind = kind or self.rng.choice(("parameter", "parameter", "buffer", "literal", "frozen", "attribute"))
        size = f"({', '.join(map(str, shape))}{',' if len(shape) == 1 else ''})"
        made = self.rng.choice((f"torch.randn({size})", f"torch.rand({size}) + 0.5", f"torch.ones({size})"))
        if kind == "parameter":
            return self.attribute(f"nn.Parameter({made})", "p")
        if kind == "frozen":
            return self.attribute(f"nn.Parameter({made}, requires_grad=False)", "p")
        if kind == "buffer":
            name = self.name("b")
            self.trial.append(f"self.register_buffer('{name}', {made})")
            return f"self.{name}"
        if kind == "attribute":
            return self.attribute(made, "a")
        if math.prod(shape) > 12:
            return f"torch.linspace(-1.0, 2.0, {math.prod(shape)}).reshape({size})"
        return f"torch.tensor({_numbers(self.rng, shape)})"

    # --- statements -------------------------------------------------------------------------------------------------

    def attempt(self, operator: str, write: Callable[[Draft, str], str], x: str) -> bool:
        """Try one statement about ``x``: ``write`` gives an expression, or lines that assign ``{y}``."""
        self.trial = []
        count = self.count
        y = self.name("y")
        saved = {name: self.environment[name].clone() for name in self.live}
        try:
            lines = _assigned(write(self, x), y)
            for line in self.trial:
                exec(line, self.environment)
            exec("\n".join(lines), self.environment)
            lines.append(self._finished(x, y))
            if not lines[-1]:
                lines.pop()
            else:
                exec(lines[-1], self.environment)
            found = self.environment[y]
            fits = isinstance(found, Tensor) and found.is_floating_point() and found.numel() <= LARGEST * BATCH
            if not fits or found.numel() == 0:
                raise Unfit
        except Exception:
            self.environment.update(saved)
            self.count = count
            return False
        self.init += self.trial
        self.body += lines
        self.live.append(y)
        self.operators.append(operator)
        return True

    def _finished(self, x: str, y: str) -> str:
        """A line that makes a result of another kind a float tensor again."""
        found = self.environment[y]
        if isinstance(found, list | tuple):
            if not found:
                raise Unfit
            tensors = [item for item in found if isinstance(item, Tensor)]
            pick = self.rng.randrange(len(found))
            if len(tensors) == len(found) and self.rng.random() < 0.3:
                joined = f"torch.cat(list({y}), {self.rng.choice((0, 1, -1))})"
                return f"{y} = {self.rng.choice((joined, f'sum({y})', joined))}"
            item = f"{y} = {y}[{pick}]"
            return item if found[pick].is_floating_point() else f"{item}.to({x}.dtype)"
        if isinstance(found, bool | int | float):
            return f"{y} = {x} {self.rng.choice('*+/')} ({y} + 1)"
        if not isinstance(found, Tensor):
            raise Unfit
        if found.dtype == torch.bool:
            ways = [f"{y}.to({x}.dtype)", f"{x} * {y}", f"torch.where({y}, {x}, 2 * {x})", f"{x}.masked_fill({y}, 0.5)"]
            return f"{y} = {self.rng.choice(ways)}"
        if found.is_complex():
            return f"{y} = {self.rng.choice((f'{y}.real', f'{y}.abs()', f'{y}.imag'))}"
        if not found.is_floating_point():
            return f"{y} = {self.rng.choice((f'{y}.to({x}.dtype)', f'{x} * {y}', f'{y}.float()', f'{y} / 3'))}"
        return ""

    def source(self, last: str) -> str:
        """The module's source, returning ``last``."""
        init = "".join(f"        {line}\n" for line in ["super().__init__()", *self.init])
        body = "".join(f"        {part}\n" for line in self.body for part in line.split("\n"))
        return (
            f"class Net(nn.Module):\n    def __init__(self):\n{init}\n"
            f"    def forward(self, x):\n{body}        return {last}\n"
        )


def _assigned(text: str, y: str) -> list[str]:
    if "<y>" in text:
        return [line.replace("<y>", y) for line in text.split(";; ")]
    return [f"{y} = {text}"]


def _numbers(rng: random.Random, shape: tuple[int, ...]) -> Any:
    if not shape:
        return rng.choice((-1.5, -0.25, 0.1, 0.3, 0.7, 1.0, 2.0, 3.3))
    return [_numbers(rng, shape[1:]) for _ in range(shape[0])]


# --- fields of templates ---------------------------------------------------------------------------------------------

FLOATS = (-2.0, -1.0, -0.5, 0.0, 0.1, 0.3, 0.5, 1.0, 1.0, 1.5, 2.0, 3.7, 7.0, 0.01, 100.0, 2, 1, -1, 3)
POSITIVE = (0.01, 0.1, 0.3, 0.5, 1.0, 1.0, 1.5, 2.0, 5.0, 20.0, 30.0)
EPSILONS = (1e-12, 1e-5, 1e-5, 1e-3, 0.1, 1.0, 0.0)
DTYPES = ("torch.float32", "torch.float64", "torch.float16", "torch.bfloat16")


def fill(template: str, draft: Draft, x: str) -> str:
    """The template with its fields drawn."""

    def drawn(match: re.Match[str]) -> str:
        return str(FIELDS[match.group(1)](draft, x))

    return re.sub(r"\{(\w+)\}", drawn, template)


def _rank(d: Draft, x: str) -> int:
    return d.value(x).ndim


def _shape(d: Draft, x: str) -> tuple[int, ...]:
    return tuple(d.value(x).shape)


def dim(d: Draft, x: str) -> int:
    """An axis but the batch's, counted from either end."""
    rank = _rank(d, x)
    if rank < 2:
        raise Unfit
    axis = d.rng.randrange(1, rank)
    return axis - rank if d.rng.random() < 0.4 else axis


def any_dim(d: Draft, x: str) -> int:
    """An axis, the batch's among them."""
    if _rank(d, x) < 2 or d.rng.random() < 0.15:
        return d.rng.choice((0, -_rank(d, x))) if _rank(d, x) else 0
    return dim(d, x)


def dims(d: Draft, x: str) -> list[int]:
    """One or more axes but the batch's."""
    rank = _rank(d, x)
    if rank < 2:
        raise Unfit
    chosen = d.rng.sample(range(1, rank), d.rng.randint(1, rank - 1))
    return [axis - rank if d.rng.random() < 0.4 else axis for axis in chosen]


def any_dims(d: Draft, x: str) -> list[int]:
    if d.rng.random() < 0.15 or _rank(d, x) < 2:
        return d.rng.sample(range(_rank(d, x)), d.rng.randint(1, max(1, _rank(d, x))))
    return dims(d, x)


def order(d: Draft, x: str) -> list[int]:
    """A permutation of the axes, most often with the batch first."""
    rank = _rank(d, x)
    rest = list(range(1, rank))
    d.rng.shuffle(rest)
    axes = [0, *rest]
    if d.rng.random() < 0.1:
        d.rng.shuffle(axes)
    return [axis - rank if d.rng.random() < 0.3 else axis for axis in axes]


def shape_of_constant(d: Draft, x: str) -> tuple[int, ...]:
    """A shape that broadcasts against one input's, or sometimes against a batch of the size at hand."""
    size = _shape(d, x)[1:]
    kinds: list[tuple[int, ...]] = [(), (1,), size, size, size[-1:], (1, *size)]
    if size:
        kinds += [(size[0], *(1 for _ in size[1:])), tuple(n if d.rng.random() < 0.5 else 1 for n in size)]
    if d.rng.random() < 0.08:
        kinds = [(BATCH, *size), (BATCH, *(1 for _ in size)), (3, *size), (2, 1, *size)]
    return d.rng.choice(kinds)


def other(d: Draft, x: str) -> str:
    """Another value, of the same shape where there is one."""
    same = [name for name in d.live if name != x and d.value(name).shape == d.value(x).shape]
    if same and d.rng.random() < 0.8:
        return d.rng.choice(same)
    return d.rng.choice(d.live)


def matrix(d: Draft, x: str) -> str:
    return d.constant((_shape(d, x)[-1], d.rng.randint(1, 5)))


def new_shape(d: Draft, x: str) -> str:
    """A shape with as many entries: of one input, mostly with the batch's axis as it is or as -1."""
    size = _shape(d, x)
    if not size:
        raise Unfit
    n = math.prod(size[1:])
    divisors = [k for k in range(1, n + 1) if n % k == 0]
    first = d.rng.choice(divisors)
    rest = d.rng.choice(
        ([n], [first, n // first], [n // first, first], [1, n], [n, 1], [first, -1], list(size[1:][::-1]), [*size[1:]])
    )
    batch = d.rng.choice(("-1", f"{x}.shape[0]", f"{x}.size(0)", f"len({x})", "-1", str(size[0])))
    if -1 in rest and batch == "-1":
        batch = f"{x}.size(0)"
    if d.rng.random() < 0.05:
        return f"({first}, -1)"
    return f"({batch}, {', '.join(map(str, rest))})"


def sizes(d: Draft, x: str) -> list[int]:
    """Sizes of the last axes, for adaptive pooling and resizing."""
    return [d.rng.randint(1, 5) for _ in range(max(1, _rank(d, x) - 2))]


def index(d: Draft, x: str) -> str:
    """An indexing expression, its brackets included."""
    parts = [":" if d.rng.random() < 0.93 else _one_index(d, 4)]
    for n in _shape(d, x)[1:]:
        parts.append(_one_index(d, n) if d.rng.random() < 0.7 else ":")
    if d.rng.random() < 0.15:
        parts.insert(d.rng.randrange(1, len(parts) + 1), "None")
    if d.rng.random() < 0.25:
        parts = ["...", *parts[d.rng.randrange(1, len(parts) + 1) :]]
    return "[" + ", ".join(parts) + "]"


def _one_index(d: Draft, n: int) -> str:
    def number() -> int:
        return d.rng.randint(-n - 1, n + 1)

    choice = d.rng.random()
    if choice < 0.2:
        return str(d.rng.randrange(-n, n))
    if choice < 0.35:
        return f"[{', '.join(str(d.rng.randrange(-n, n)) for _ in range(d.rng.randint(1, n + 1)))}]"
    if choice < 0.42:
        return f"torch.tensor({[d.rng.random() < 0.7 for _ in range(n)]})"
    start, end = ("" if d.rng.random() < 0.4 else str(number()) for _ in range(2))
    step = f":{d.rng.randint(1, 3)}" if d.rng.random() < 0.4 else ""
    return f"{start}:{end}{step}"


def indices(d: Draft, x: str) -> str:
    """An index tensor of one axis of a random length."""
    n = d.rng.choice(_shape(d, x)[1:] or (1,))
    return f"torch.tensor({[d.rng.randrange(n) for _ in range(d.rng.randint(1, 5))]})"


def widths(d: Draft, x: str) -> list[int]:
    """Padding widths, pairs from the last axis on."""
    pairs = d.rng.randint(1, max(1, _rank(d, x) - 1))
    return [d.rng.choice((0, 0, 1, 1, 2, 3, -1)) for _ in range(2 * pairs)]


def splits(d: Draft, x: str) -> str:
    axis = dim(d, x)
    n = _shape(d, x)[axis]
    cut = d.rng.randint(0, n)
    return f"{d.rng.choice((cut, [cut, n - cut], [n - cut, cut]))}, {axis}"


FIELDS: dict[str, Callable[[Draft, str], Any]] = {
    "x": lambda d, x: x,
    "z": other,
    "any": lambda d, x: d.rng.choice(d.live),
    "d": dim,
    "D": any_dim,
    "dd": dims,
    "DD": any_dims,
    "order": order,
    "f": lambda d, x: d.rng.choice(FLOATS),
    # What is assigned is rounded to the module's type, which the judge does not see.
    "exact": lambda d, x: d.rng.choice((-2.0, -0.5, 0.0, 0.25, 1.0, 1.5, 7.0)),
    "p": lambda d, x: d.rng.choice(POSITIVE),
    "eps": lambda d, x: d.rng.choice(EPSILONS),
    "i": lambda d, x: d.rng.randint(-7, 7),
    "n": lambda d, x: d.rng.randint(1, 4),
    "m": lambda d, x: d.rng.randint(0, 3),
    "b": lambda d, x: d.rng.random() < 0.5,
    "rare": lambda d, x: d.rng.random() < 0.1,
    "often": lambda d, x: d.rng.random() < 0.9,
    "C": lambda d, x: d.constant(shape_of_constant(d, x)),
    "same": lambda d, x: d.constant(_shape(d, x)[1:]),
    "scalar": lambda d, x: d.constant(d.rng.choice(((), (1,))), d.rng.choice(("parameter", "parameter", "buffer"))),
    "last": lambda d, x: d.constant(_shape(d, x)[-1:]),
    "channel": lambda d, x: d.constant(_shape(d, x)[1:2] if _rank(d, x) > 1 else (1,)),
    "W": matrix,
    "out": lambda d, x: d.rng.randint(1, 5),
    "in": lambda d, x: _shape(d, x)[-1] if _rank(d, x) > 1 else 1,
    "c": lambda d, x: _shape(d, x)[1] if _rank(d, x) > 1 else 1,
    "size": lambda d, x: list(_shape(d, x)[1:]),
    "tail": lambda d, x: list(_shape(d, x)[d.rng.randint(1, max(1, _rank(d, x) - 1)) :]),
    "rank": _rank,
    "shape": new_shape,
    "sizes": sizes,
    "idx": index,
    "indices": indices,
    "widths": widths,
    "splits": splits,
    "k": lambda d, x: d.rng.choice((1, 2, 2, 3, 3, 4, (2, 3), (1, 3), (2,), (3, 1, 2))),
    "s": lambda d, x: d.rng.choice((1, 1, 2, 3, None, (1, 2), (2,))),
    "pad": lambda d, x: d.rng.choice((0, 0, 1, 1, 2, (0, 1), (1, 2), (1,))),
    "dil": lambda d, x: d.rng.choice((1, 1, 1, 2, 3, (1, 2))),
    "dtype": lambda d, x: d.rng.choice(DTYPES),
    "anytype": lambda d, x: d.rng.choice((*DTYPES, "torch.int64", "torch.int8", "torch.bool", "torch.complex64")),
    "seed": lambda d, x: d.rng.randrange(1000),
    "grouped": lambda d, x: d.rng.choice([k for k in range(1, 8) if _shape(d, x)[1] % k == 0]),
}
