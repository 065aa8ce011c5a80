"""auto_LiRPA beside a current torch and numpy, without touching its installed files or its host's streams.

Release 0.3, the newest on PyPI, was written for torch 1.12 and numpy 1. Four names that it uses have gone or changed
since; each is given back where it is looked up, only if it is missing. Newer releases need none of this. The import of
any release also configures the root logger onto stdout, resets the warning filters and switches torch's JIT profiling
off; those are the host's, so they are put back.

The linear relaxations of sin and cos of every release we measured are not sound (0.3 interpolates a table of tangents
and misses by up to 8e-6; 0.7.1 misses by up to 8e-3), so :func:`operators` gives the tool ours, which are.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import math
import sys
import threading
import types
import warnings
from collections.abc import Callable, Generator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lipbridge.errors import MissingDependency

#: auto-LiRPA pins a torch that no current Python has, so it can only be installed without its dependencies.
INSTALL = 'pip install --no-deps auto-LiRPA==0.3 && pip install "lipbridge[lirpa]"'
#: Newer releases are in its repository alone.
INSTALL_NEWEST = (
    "pip install --no-deps git+https://github.com/Verified-Intelligence/auto_LiRPA && "
    'pip install graphviz "lipbridge[lirpa]"'
)

_C: Any = torch._C  # pyright: ignore[reportPrivateUsage]
_lock = threading.RLock()


def load() -> Any:
    """The package ``auto_LiRPA``, mended if it needs mending. Calling it again changes nothing.

    Raises:
        MissingDependency: with the command that installs it.
    """
    if find_spec("auto_LiRPA") is None:
        raise MissingDependency("auto_LiRPA", INSTALL)
    with _lock:
        if "auto_LiRPA" in sys.modules:
            tool: Any = sys.modules["auto_LiRPA"]
        else:
            with _host_kept(), _silence(), _old_names():
                try:
                    tool = importlib.import_module("auto_LiRPA")
                except ModuleNotFoundError as error:  # one of its own dependencies, which --no-deps left out
                    raise MissingDependency(f"{error.name}, which auto_LiRPA imports,", INSTALL) from error
        if version(tool) < (0, 4):
            _mend(tool)
    return tool


def version(tool: Any) -> tuple[int, ...]:
    """The release as numbers, e.g. ``(0, 3)``."""
    return tuple(int(part) for part in str(tool.__version__).split(".")[:3] if part.isdigit())


def has_jacobian() -> bool:
    """Whether the installed release is 0.7 or newer, the first whose Jacobian is known to us.

    Whether there is one at all is seen without an import.
    """
    found = find_spec("auto_LiRPA")
    folders = (found and found.submodule_search_locations) or []
    if not any((Path(folder) / "jacobian.py").exists() for folder in folders):
        return False
    return version(load()) >= (0, 7)


@contextlib.contextmanager
def session() -> Generator[None]:
    """The state in which the tool may run: float64 by default, nothing printed, and all of it put back afterwards.

    The default dtype matters: tables of tangents, identity matrices and slopes are made in it, whatever the model's is.
    It belongs to the process, so sessions of several threads take turns.
    """
    with _lock, _silence(), _double():
        yield


@contextlib.contextmanager
def _silence() -> Generator[None]:
    logger = logging.getLogger("auto_LiRPA")
    before, logger.propagate = logger.propagate, False
    if not logger.handlers:
        logger.addHandler(logging.NullHandler())
    try:
        # Recorded rather than ignored: the tool sets the filters anew, which would undo an "ignore".
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings(record=True):
            yield
    finally:
        logger.propagate = before


@contextlib.contextmanager
def _double() -> Generator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextlib.contextmanager
def _host_kept() -> Generator[None]:
    """Undo what importing the tool does to logging and torch's JIT; `_silence` does it for the warning filters."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    profiling = _peek(_C._jit_set_profiling_executor), _peek(_C._jit_set_profiling_mode)
    try:
        yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
        _C._jit_set_profiling_executor(profiling[0])
        _C._jit_set_profiling_mode(profiling[1])


def _peek(switch: Callable[[bool], bool]) -> bool:
    """The state of a JIT switch, whose setter returns the state before."""
    state = switch(False)
    switch(state)
    return state


@contextlib.contextmanager
def _old_names() -> Generator[None]:
    """Two names that 0.3 imports and never needs: ``numpy.lib.arraysetops.isin`` and torch's opset setter."""
    placed: list[Callable[[], None]] = []
    if find_spec("numpy.lib.arraysetops") is None and "numpy.lib.arraysetops" not in sys.modules:
        stub: Any = types.ModuleType("numpy.lib.arraysetops")
        stub.isin = importlib.import_module("numpy").isin
        sys.modules[stub.__name__] = stub
        placed.append(lambda: sys.modules.pop(stub.__name__, None) and None)
    helper: Any = importlib.import_module("torch.onnx.symbolic_helper")
    if not hasattr(helper, "_set_opset_version"):
        helper._set_opset_version = _set_opset_version
        placed.append(lambda: delattr(helper, "_set_opset_version"))
    try:
        yield
    finally:
        for undo in placed:
            undo()


def _set_opset_version(opset: int) -> None:
    """The graph optimiser reads the opset from torch's globals, whose default serves the few operators used here."""


def _mend(tool: Any) -> None:
    if not hasattr(_C.Node, "__getitem__"):
        _C.Node.__getitem__ = _attribute
    if not getattr(tool.BoundedModule._named_members, "mended", False):
        tool.BoundedModule._named_members = _named_members(tool.BoundedModule._named_members)
    tool.BoundedModule.check_IBP_intermediate = _intervals_from_below


def _intervals_from_below(self: Any, node: Any) -> bool:
    """Whether a node's bounds follow by intervals from those of a node below it, which are known; then they are set.

    0.3's own gives the interval of every node of the chain to the node at its beginning. Whoever reads that one next,
    as exp(-relu(-z)) reads the z of relu(z), gets the interval of something else: a bound was 0.4 below a value.
    """
    chain: list[Any] = []
    while not (hasattr(node, "lower") and hasattr(node, "upper")):
        if type(node) not in self.ibp_intermediate:
            return False
        chain.append(node)
        node = node.inputs[0]
    if not hasattr(node, "interval"):
        node.interval = node.lower, node.upper
    for member in reversed(chain):
        member.interval = self.IBP_general(member)
    return True


def _attribute(node: Any, name: str) -> Any:
    """``node[name]``: an attribute of a traced node by the reader of its kind, which torch 1.x had as a method."""
    return getattr(node, node.kindOf(name))(name)


def _named_members(original: Any) -> Any:
    """torch 2 passes ``remove_duplicate``; the tool's own override always removes them."""

    def mended(
        self: Any, get_members_fn: Any, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Any:
        return original(self, get_members_fn, prefix=prefix, recurse=recurse)

    mended.mended = True  # type: ignore[attr-defined]
    return mended


# --- sine ------------------------------------------------------------------------------------------------------------


def operators(tool: Any) -> dict[str, Any]:
    """Operators that replace the tool's own, by name, for the argument ``custom_ops`` of its ``BoundedModule``."""
    base: Any = importlib.import_module(f"{tool.__name__}.operators").BoundActivation

    class Sine(base):  # the tool's protocol: forward, interval_propagate, bound_relax
        phase = 0.0

        def forward(self, x: Tensor) -> Tensor:
            return torch.sin(x)

        def interval_propagate(self, *v: Any) -> tuple[Tensor, Tensor]:
            low, high = v[0][0] + self.phase, v[0][1] + self.phase
            flat = torch.zeros_like(low)
            return -_highest(-high, -low, flat)[0], _highest(low, high, flat)[0]

        def bound_relax(self, x: Any, *_: Any, **__: Any) -> None:
            with torch.no_grad():
                low, high = x.lower + self.phase, x.upper + self.phase
                self.uw, self.ub = upper_line(low, high)
                self.lw, intercept = upper_line(-high, -low)  # sin t = -sin(-t)
                self.ub, self.lb = self.ub + self.uw * self.phase, self.lw * self.phase - intercept

    class Cosine(Sine):
        phase = math.pi / 2

        def forward(self, x: Tensor) -> Tensor:
            return torch.cos(x)

    return {"onnx::Sin": Sine, "onnx::Cos": Cosine, **(_with_shared_tables(tool) if version(tool) < (0, 4) else {})}


def _with_shared_tables(tool: Any) -> dict[str, Any]:
    """0.3 bisects two tables of 50,000 tangents for every tanh and sigmoid layer of every model; once will do."""
    package: Any = importlib.import_module(f"{tool.__name__}.operators")

    def shared(base: Any) -> Any:
        class Shared(base):
            def precompute_relaxation(self, name: str, *rest: Any, **more: Any) -> None:
                layer: Any = self
                key = name, str(layer.device), torch.get_default_dtype()
                if key not in _tangents:
                    before = set(layer.__dict__)
                    base.precompute_relaxation(layer, name, *rest, **more)
                    _tangents[key] = {new: value for new, value in layer.__dict__.items() if new not in before}
                layer.__dict__.update(_tangents[key])

        return Shared

    return {"onnx::Tanh": shared(package.BoundTanh), "onnx::Sigmoid": shared(package.BoundSigmoid)}


_tangents: dict[tuple[str, str, torch.dtype], dict[str, Any]] = {}


def upper_line(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Slope k and intercept b with sin t <= k t + b on [low, high], lowest (nearly) at the middle of the interval.

    For a given k the least b is h(k) = max(sin t - k t), known in closed form, so any k is sound. The height h(k) + k m
    at the middle m is convex in k with the subgradient m - argmax, hence the bisection. Source: ours.
    """
    middle = low + (high - low) / 2
    left, right = -torch.ones_like(low), torch.ones_like(low)
    for _ in range(16):
        k = (left + right) / 2
        steeper = _highest(low, high, k)[1] > middle
        left, right = torch.where(steeper, k, left), torch.where(steeper, right, k)
    k = (left + right) / 2
    return k, _highest(low, high, k)[0]


def sine_maximum(low: Tensor, high: Tensor) -> Tensor:
    """The largest value of sin t on [low, high]."""
    return _highest(low, high, torch.zeros_like(low))[0]


def _highest(low: Tensor, high: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    """Maximum of sin t - k t over [low, high] for |k| <= 1, and where it is attained."""
    # Local maxima lie at arccos k + 2 pi n; the first in the interval is the highest for k >= 0, the last for k < 0.
    peak, turn = torch.arccos(k), 2 * math.pi
    n = torch.where(k >= 0, torch.ceil((low - peak) / turn), torch.floor((high - peak) / turn))
    points = torch.stack([low, high, torch.minimum(torch.maximum(peak + turn * n, low), high)])
    value, index = (torch.sin(points) - k * points).max(0)
    return value, points.gather(0, index.unsqueeze(0)).squeeze(0)
