"""Whether two modules are the same function but for rounding, at random points of several scales.

Twice: their Graphs in float64, and the modules themselves, as the user runs them. The room is what rounding in the
module's dtype can do: the running error of the first Graph, and for dtypes below float64, whose running error soon
excuses everything, at most what capture's check allows or what the module's own rounding shows.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lipbridge.frontend.check import by_row, random_points
from lipbridge.frontend.export import silenced, unwrapped
from lipbridge.frontend.module_state import as_it_was
from lipbridge.graph.graph import Graph
from lipbridge.rigor.running_error import enclose
from lipbridge.rigor.tangent_error import understood

#: Points that are compared.
_POINTS = 14
#: In units of the dtype's rounding: times the running error, and of the largest value on the way.
_RUNNING, _LARGEST = 8.0, 1024.0
#: Times the rounding that the module itself shows.
_MEASURED = 16.0


def same_function(modules: Sequence[nn.Module], graphs: Sequence[Graph]) -> bool:
    """Whether two modules, and their Graphs, agree within the rounding of the modules' dtype.

    Points at which either overflows in the modules' dtype are not compared in it. The modules are left as they were.
    """
    (module, other), (graph, another) = modules, graphs
    example = next((t for t in module.parameters() if t.is_floating_point()), torch.zeros((), dtype=torch.float64))
    x = random_points(graph.input_shape, _POINTS).to(dtype=example.dtype, device=example.device)
    exact = x.to(dtype=torch.float64, device=graph.device)
    values = graph.values(exact)
    expected, found = values[-1], another(exact)
    with torch.no_grad(), silenced():
        ours, theirs = _outputs(module, x), _outputs(other, x)
    if not ours.shape == theirs.shape == expected.shape == found.shape:
        return False
    unit = max(torch.finfo(t.dtype).eps for t in (x, *module.parameters()) if t.is_floating_point()) / 2.0
    largest = torch.stack([by_row(value) for value in values]).amax(0)
    room = _LARGEST * unit * largest
    shown = torch.nan_to_num(ours.to(expected) - expected, nan=0.0, posinf=0.0, neginf=0.0)
    room = torch.maximum(room, _MEASURED * by_row(shown))
    if understood(graph) is None:
        running = by_row(enclose(graph, exact).error) * (_RUNNING * unit / 2.0**-53)
        room = running if unit <= 2.0**-53 else torch.minimum(room, running)
    room = room + torch.finfo(x.dtype).tiny
    return _agree(expected, found, room) and _agree(ours.to(expected), theirs.to(expected), 2.0 * room)


def _outputs(module: nn.Module, x: Tensor) -> Tensor:
    network = unwrapped(module)
    with as_it_was(network):
        return network(x).detach()


def _agree(a: Tensor, b: Tensor, room: Tensor) -> bool:
    """Whether rows differ by no more than ``room``, and overflow together."""
    finite = torch.isfinite(a).reshape(len(a), -1).all(1)
    if not bool(torch.equal(finite, torch.isfinite(b).reshape(len(b), -1).all(1))):
        return False
    return bool((by_row(a[finite] - b[finite]) <= room[finite]).all())


__all__ = ["same_function"]
