"""The program of a LipSDP matrix inequality, assembled stage by stage for the barrier method."""

from __future__ import annotations

import torch
from torch import Tensor

from lipbridge.linalg import torch_linalg
from lipbridge.lipsdp.blocks import LARGEST_KAPPA
from lipbridge.lipsdp.solve.barrier import Program, Segment, Term
from lipbridge.lipsdp.system import LipSDP, Stage


def program_of(system: LipSDP, device: torch.device | str = "cpu") -> Program:
    """The segments of a network with at least one activation, on a device that knows float64."""
    W = system.entry.to(device)
    if W.shape[1] > W.shape[0]:  # W_1 enters through W_1 W_1' only
        W = torch_linalg.qr(W.T, mode="r")[1].T.contiguous()
    segments: list[Segment] = []
    terms: list[Term] = []
    size = head = inputs = W.shape[1]
    state, start, first = W, 0, 1
    for stage in system.stages:
        rule, u = stage.increments, stage.free_width
        J, C = rule.variables, rule.constraints
        own = state if stage.free is None else state[stage.free.to(state.device)]
        kappa, alone = _shift(stage)
        if rule.cuts:
            terms.append(Term(first, rule.group, C, u, own, start, None, ()))
            segments.append(Segment(size, head, inputs, tuple(terms), None, 0))
            terms, size, inputs, place = [Term(first, rule.group, C, u, None, 0, 0, kappa)], J * u, 0, 0
            head = size
        else:
            place = size
            size += J * u
            if J:
                terms.append(Term(first, rule.group, C, u, own, start, place, kappa))
        first += C * u
        state, start = _next_state(stage, kappa, state, start, place, alone)
    segments.append(Segment(size, head, inputs, tuple(terms), state, start))
    return Program(tuple(segments), system.stages)


def _shift(stage: Stage) -> tuple[tuple[float, ...], bool]:
    """kappa per variable, and whether the next state then sees the new variables alone."""
    E = stage.increments.outputs
    m, R = E[:, 0], E[:, 1:]
    none = (0.0,) * R.shape[1]
    if not R.shape[1] or not bool(m.any()):
        return none, not bool(m.any())
    kappa = torch_linalg.pinv(R) @ m
    kappa = torch.where((kappa - kappa.round()).abs() < 1e-14, kappa.round(), kappa)
    if float(kappa.abs().max()) > LARGEST_KAPPA or float((m - R @ kappa).abs().max()) > 1e-12 * float(m.abs().max()):
        return none, False
    return tuple(float(value) for value in kappa.unbind()), True


def _next_state(
    stage: Stage, kappa: tuple[float, ...], state: Tensor, start: int, place: int, alone: bool
) -> tuple[Tensor, int]:
    """The next state as a map of the segment's coordinates, and the first of those."""
    E, u = stage.increments.outputs.to(state.device), stage.width
    R = E[:, 1:]
    W = stage.weight.to(state.device).reshape(-1, E.shape[0], u)
    onto_p = torch.einsum("aku,kj->aju", W, R)
    onto_p = (onto_p if stage.free is None else onto_p[..., stage.free.to(state.device)]).flatten(1)
    if alone or stage.increments.cuts:
        return onto_p, place
    m = E[:, 0] - R @ state.new_tensor(kappa) if kappa else E[:, 0]
    onto_z = torch.einsum("aku,k->au", W, m) @ state
    return torch.cat([onto_z, onto_p], dim=1), start  # p comes right after what z lives on
