"""LipSDP bounds of many networks of equal widths and activations at once: one descent for all, a proof for each.

For trainings that bound every checkpoint, ensembles and hyperparameter searches: the networks' weights are stacked and
the descent of :mod:`lipbridge.lipsdp.solve.descent` runs on their device without waiting for it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

import torch

from lipbridge.errors import InvalidArgument, NumericalFailure
from lipbridge.graph.graph import Graph
from lipbridge.lipsdp.multipliers import closed_form_bound
from lipbridge.lipsdp.proof import prove
from lipbridge.lipsdp.solve.descent import descend, stack_of, start, tightened
from lipbridge.lipsdp.system import LipSDP, lipsdp_of
from lipbridge.lowering.chain import Chain, as_chain
from lipbridge.problem.bound import Bound

METHOD = "LipSDP by batched descent"


def lipsdp_bounds(graphs: Sequence[Graph], steps: int = 300) -> list[Bound]:
    """Proved upper bounds of the l_2 constants of networks, everywhere, none above its closed form's.

    Args:
        graphs: dense chains of equal widths and activations, their weights on one device that knows float64.
        steps: of the descent. Each costs what one evaluation of rho does; it does not wait for the device.

    Returns:
        A Bound for each network, in order: upper, proved, with its multipliers. ``seconds`` is its share of the whole.

    Raises:
        InvalidArgument: for networks that differ in shape, or less than one step.
        UnsupportedProblem: if a Graph is no dense chain.
        NumericalFailure: for NaN weights or a bound beyond float64.

    Law: never below a witness, never above the closed form.
    """
    begin = time.perf_counter()
    if steps < 1:
        raise InvalidArgument("steps", "be at least 1", steps)
    chains = [as_chain(graph, rounded=True) for graph in graphs]
    shapes = [_shape(chain) for chain in chains]
    if any(shape != shapes[0] for shape in shapes):
        raise InvalidArgument("graphs", "have equal widths and activations", "networks that differ")
    systems = [lipsdp_of(chain) for chain in chains]
    bounds = [closed_form_bound(system) for system in systems]
    todo = [index for index, system in enumerate(systems) if _is_worth_it(system)]
    if todo:
        stack = stack_of([systems[index] for index in todo], chains[0].layers[0].weight.device)
        multipliers, _, found = descend(stack, start(stack), steps)
        on_host, fine = [T.cpu() for T in multipliers], found.cpu()
        for row, index in enumerate(todo):
            if bool(fine[row]):
                system = systems[index]
                vectors = [T[row][:, stage.kept] for T, stage in zip(on_host, system.stages, strict=True)]
                bounds[index] = _better(system, vectors, bounds[index])
    seconds = (time.perf_counter() - begin) / max(len(graphs), 1)
    return [replace(bound, seconds=seconds) for bound in bounds]


def _shape(chain: Chain) -> tuple[object, ...]:
    return (tuple(tuple(layer.weight.shape) for layer in chain.layers), *chain.activations)


def _is_worth_it(system: LipSDP) -> bool:
    """Whether there are multipliers to choose."""
    return not system.constant and any(stage.increments.variables for stage in system.stages)


def _better(system: LipSDP, vectors: list[torch.Tensor], fallback: Bound) -> Bound:
    """The proved bound of multipliers, or the fallback where that is better or rounding left no room."""
    try:
        value, proved = prove(system, tightened(system, vectors))
    except NumericalFailure:
        return fallback
    if value > fallback.value:
        return fallback
    return system.bound(value, proved, METHOD)
