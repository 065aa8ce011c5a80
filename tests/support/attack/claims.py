"""What the package claims of a network: every proved number it gives, by verifier, norm and region."""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from lipbridge import Ball, Budget, Problem, Question, get_verifier, trivial_bound
from lipbridge.activations.activation import Term
from lipbridge.activations.registry import recognise
from lipbridge.errors import LipbridgeError, UnsupportedProblem
from lipbridge.graph.graph import Graph
from lipbridge.graph.nodes import Conv, ConvTranspose, Dense, Elementwise, Node
from lipbridge.lipsdp.by_channel.multipliers import bound_by_channels, channel_problem
from lipbridge.lipsdp.dense_problem import l2_problem
from lipbridge.lipsdp.linf import closed_form, ends_problem, pieces_of, prove_piece
from lipbridge.lipsdp.multipliers import closed_form_bound, prove_from_multipliers
from lipbridge.lipsdp.solve.batch import lipsdp_bounds
from lipbridge.norms import CHEAP_PAIRS
from lipbridge.problem.bound import Bound
from lipbridge.verifiers.registry import list_verifiers
from lipbridge.vocabulary import Norm, Side
from tests.support.refusals import reason as reason_of
from tests.support.refusals import refused

#: How often a verifier is asked; others that are proved, of anybody's package, are asked as often as solvers.
SHARES = {"trivial": 1.0, "eclipse-fast": 1.0, "lipsdp-fast": 0.25, "witness": 0.04, "jacobian": 0.25}
SOLVERS = 0.01
#: Further proofs that no registered verifier shows alone.
INNER = {"any multipliers": 0.4, "batched": 0.06, "l_inf closed form": 0.25, "channels": 0.25, "onnx, trivial": 0.06}
#: Claims on balls.
BALLS = {"on balls": 0.12, "jacobian on balls": 0.25, "exact on balls": 0.01}
#: Seconds of verifiers that go on until a limit; others have twenty.
SECONDS = {"witness": 0.25, "exact": 1.0}
QUESTIONS: tuple[tuple[Norm, Norm], ...] = ((2, 2), (1, 1), ("inf", "inf"))
RADII = (1e-6, 0.01, 0.3, 1.0, 5.0)


@dataclass(frozen=True)
class Claim:
    """A proved number: ``name`` is whose, ``bound`` a Bound of the problem."""

    name: str
    problem: Problem
    bound: Bound


@dataclass(frozen=True)
class Silence:
    """No number: an error on purpose (``refused``), or an exception that is none of ours (``crashed``)."""

    name: str
    crashed: bool
    text: str


def proved_verifiers() -> list[str]:
    """All that are registered, installed and prove their bounds."""
    return [info.name for info in list_verifiers() if info.proved and info.installed]


def all_claimants() -> list[str]:
    return [*proved_verifiers(), *INNER, *BALLS]


def claims(graph: Graph, seed: int | str, names: list[str] | None = None) -> Iterator[Claim | Silence]:
    """The claims of those that are drawn, or of all that are named."""
    drawn = random.Random(f"claims {seed}")
    shares = {name: SHARES.get(name, SOLVERS) for name in proved_verifiers()} | INNER | BALLS
    chosen = [name for name, share in shares.items() if drawn.random() < share] if names is None else names
    for name in chosen:
        found = claims_of(name, graph, drawn)
        while True:
            try:
                yield next(found)
            except StopIteration:
                break
            except LipbridgeError as error:
                yield Silence(name, False, f"{type(error).__name__}: {error}")
                break
            except Exception as error:
                yield Silence(name, True, f"{type(error).__name__}: {error}")
                break


def claims_of(name: str, graph: Graph, drawn: random.Random) -> Iterator[Claim]:
    """Of one claimant, for all norms that it takes."""
    if name in _INNER:
        yield from _INNER[name](graph, drawn)
        return
    if name == "jacobian on balls":
        for _ in range(2):
            question = Question.on(_balls(graph, drawn), *drawn.choice(CHEAP_PAIRS))
            options = {"split": drawn.choice(("none", "none", "units", "inputs")), "steps": drawn.choice((0, 3))}
            yield from _asked("jacobian", Problem(graph, question), Budget(seconds=0.15, options=options))
        return
    if name == "exact on balls":
        yield from _asked("exact", Problem(graph, Question.on(_balls(graph, drawn), *drawn.choice(CHEAP_PAIRS))))
        return
    if name == "on balls":
        for verifier in ("eclipse-fast", drawn.choice(("lipsdp-fast", "lipsdp-fast", "witness"))):
            yield from _asked(verifier, Problem(graph, Question.on(_balls(graph, drawn), 2)))
        return
    pairs = CHEAP_PAIRS if name == "trivial" else QUESTIONS
    for p, q in pairs if name == "trivial" else [pair for pair in pairs if _asks(name, graph, pair)][:2]:
        yield from _asked(name, Problem(graph, Question.everywhere(p, q)))


def _asks(name: str, graph: Graph, pair: tuple[Norm, Norm]) -> bool:
    return refused(get_verifier(name), Problem(graph, Question.everywhere(*pair))) is None


def _asked(name: str, problem: Problem, budget: Budget | None = None) -> Iterator[Claim]:
    verifier = get_verifier(name)
    reason = refused(verifier, problem)
    if reason is not None:
        raise UnsupportedProblem(reason)
    budget = budget or Budget(seconds=SECONDS.get(name, 20.0))
    bound = verifier.prepare(problem).bound(budget)
    if bound.proved and bound.value == bound.value:
        label = name if problem.region is None else f"{name} on balls"
        yield Claim(label, problem, bound)


def _balls(graph: Graph, drawn: random.Random) -> Ball:
    generator = torch.Generator().manual_seed(drawn.randrange(2**31))
    count = drawn.choice((1, 1, 2))
    centers = torch.randn(count, *graph.input_shape, generator=generator, dtype=torch.float64)
    return Ball(centers, drawn.choice(RADII), drawn.choice((1, 2, "inf")))


# --- proofs that no registered verifier shows alone ------------------------------------------------------------------


def _upper(name: str, graph: Graph, value: float, p: Norm = 2, q: Norm = 2) -> Claim:
    problem = Problem(graph, Question.everywhere(p, q))
    return Claim(
        name, problem, Bound(value=value, side=Side.UPPER, proved=True, question=problem.question, method=name)
    )


def _any_multipliers(graph: Graph, drawn: random.Random) -> Iterator[Claim]:
    """Multipliers near the closed form's, and none like them."""
    reason = reason_of(l2_problem(Problem(graph, Question.everywhere(2))))
    if reason is not None:
        raise UnsupportedProblem(reason)
    form = closed_form_bound(graph)
    yield _upper("any multipliers", graph, form.value)
    generator = torch.Generator().manual_seed(drawn.randrange(2**31))
    spread = drawn.choice((1e-9, 0.3, 3.0))

    def changed(T: Tensor) -> Tensor:
        return T * (spread * torch.randn(T.shape, generator=generator, dtype=torch.float64)).exp()

    given = {name: changed(T) for name, T in (form.multipliers or {}).items()}
    yield _upper("any multipliers", graph, prove_from_multipliers(graph, given).value)


def _batched(graph: Graph, drawn: random.Random) -> Iterator[Claim]:
    reason = reason_of(l2_problem(Problem(graph, Question.everywhere(2))))
    if reason is not None:
        raise UnsupportedProblem(reason)
    (bound,) = lipsdp_bounds([graph], 20)
    yield _upper("batched", graph, bound.value)


def _l_inf(graph: Graph, drawn: random.Random) -> Iterator[Claim]:
    for norm in ("inf", 1):
        reason = reason_of(ends_problem(Problem(graph, Question.everywhere(norm))))
        if reason is not None:
            raise UnsupportedProblem(reason)
        values = [prove_piece(piece, closed_form(piece)) for piece in pieces_of(graph, norm)]
        yield _upper("l_inf closed form", graph, max(values), norm, norm)


def _channels(graph: Graph, drawn: random.Random) -> Iterator[Claim]:
    problem = Problem(graph, Question.everywhere(2))
    reason = reason_of(channel_problem(problem))
    if reason is not None:
        raise UnsupportedProblem(reason)
    yield _upper("channels", graph, bound_by_channels(problem, time.perf_counter() + 0.3).value)


def _onnx(graph: Graph, drawn: random.Random) -> Iterator[Claim]:
    """The network in float32, written and read: where the file holds it exactly, its bound is one of the network."""
    from lipbridge_adapters.onnx.export import export_onnx
    from lipbridge_adapters.onnx.reading import read_onnx

    graph = in_float32(graph)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.onnx"
        report = export_onnx(graph, path, drawn.choice(("native", "relu")), check=False)
        if report.rounding:
            raise UnsupportedProblem("The file is not the network to the last bit.")
        found = read_onnx(path)
    for p, q in QUESTIONS:
        yield _upper("onnx, trivial", graph, trivial_bound(found, p, q).value, p, q)


def in_float32(graph: Graph) -> Graph:
    """The network with all its numbers rounded to float32."""
    return replace(graph, nodes=tuple(_in_float32(node) for node in graph.nodes))


def _in_float32(node: Node) -> Node:
    if isinstance(node, Dense | Conv | ConvTranspose):
        bias = None if node.bias is None else node.bias.float().double()
        return replace(node, weight=node.weight.float().double(), bias=bias)
    if isinstance(node, Elementwise):
        components = tuple(tuple(map(_term_in_float32, component)) for component in node.activation.components)
        return replace(node, activation=recognise(components))
    return node


def _term_in_float32(term: Term) -> Term:
    def rounded(value: float) -> float:
        return float(torch.tensor(value, dtype=torch.float32))

    numbers = {name: rounded(getattr(term, name)) for name in ("coefficient", "scale", "offset")}
    return replace(term, parameters=tuple(map(rounded, term.parameters)), **numbers)


_INNER = {
    "any multipliers": _any_multipliers,
    "batched": _batched,
    "l_inf closed form": _l_inf,
    "channels": _channels,
    "onnx, trivial": _onnx,
}
