"""LipSDP bounds from multipliers: any multipliers in, a proved bound out.

A solver's multipliers are a claim, never trusted: they are clipped, mixed with a feasible point where they are not
feasible, and the constant that they give is proved in outward-rounded arithmetic
(:mod:`lipbridge.lipsdp.proof`).
"""

from __future__ import annotations

import time

import torch
from torch import Tensor

from lipbridge.errors import NumericalFailure
from lipbridge.graph.graph import Graph
from lipbridge.lipsdp.elimination import closed_form, mix
from lipbridge.lipsdp.proof import prove
from lipbridge.lipsdp.system import LipSDP, Multipliers, lipsdp_of
from lipbridge.problem.bound import Bound


def closed_form_multipliers(network: Graph | LipSDP) -> dict[str, Tensor]:
    """Feasible multipliers in closed form, one value a layer. Their bound is never above the trivial bound's product.

    Raises:
        UnsupportedProblem: if the network is no dense chain.
        NumericalFailure: if weights hold NaN.

    Source: in the manner of ECLipsE-Fast (Xu and Sivaranjani 2024). Law: :func:`prove_from_multipliers` succeeds.
    """
    system = network if isinstance(network, LipSDP) else lipsdp_of(network)
    if system.constant:
        return system.multipliers([torch.zeros(s.increments.constraints, s.width) for s in system.stages])
    return system.multipliers(closed_form(system))


def prove_from_multipliers(network: Graph | LipSDP, multipliers: Multipliers, method: str = "LipSDP") -> Bound:
    """The proved l_2 bound that multipliers from anywhere give.

    Args:
        network: a Graph, or its LipSDP inequality (:func:`lipsdp_of`).
        multipliers: per activation layer "T1", "T2", ... a vector of ``constraints * units`` entries, of the network
            scaled as :class:`LipSDP` says. Negative entries count as zero.
        method: what the Bound is to be called.

    Returns:
        A Bound, upper and proved, of the inequality's question, with the multipliers that were proved.

    Raises:
        InvalidArgument: for missing layers, wrong lengths, NaN or infinity.
        NumericalFailure: if rounding leaves no room for a proof (weights beyond float64).

    Law: never below a witness, whatever the multipliers.
    """
    start = time.perf_counter()
    system = network if isinstance(network, LipSDP) else lipsdp_of(network)
    vectors = system.vectors(multipliers)
    if system.constant or not system.stages:
        value, proved = prove(system, vectors)
    else:
        feasible = closed_form(system)
        try:
            value, proved = prove(system, mix(system, vectors, feasible))
        except NumericalFailure:  # too close to infeasible for rounding; the closed form has room
            value, proved = prove(system, feasible)
    return system.bound(value, proved, method, time.perf_counter() - start)


def closed_form_bound(network: Graph | LipSDP) -> Bound:
    """The proved bound of :func:`closed_form_multipliers`, of the inequality's question."""
    start = time.perf_counter()
    system = network if isinstance(network, LipSDP) else lipsdp_of(network)
    multipliers = closed_form_multipliers(system)
    if not all(bool(torch.isfinite(T).all()) for T in multipliers.values()):
        raise NumericalFailure("The LipSDP multipliers are beyond float64; rescale the network.")
    value, proved = prove(system, system.vectors(multipliers))
    return system.bound(value, proved, "LipSDP, closed form", time.perf_counter() - start)
