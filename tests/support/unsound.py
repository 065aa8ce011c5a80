"""Verifiers that are known to be unsound, as somebody's package would have them: what an audit has to find.

- ``lirpa-default``: auto_LiRPA 0.3 with the options that it has if none are given.
- ``eclipse-nn``: ECLipsE-Fast with slopes in [0, 1] whatever the activation is, as the package of that name has it.
- ``seqlip``: SeqLip's greedy estimate (Scaman & Virmaux 2018), called an upper bound.
- ``certain``: certifies every prediction; ``lofty``: a lower bound that is too large.
"""

from __future__ import annotations

import math
import os
from importlib import import_module
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn

from lipbridge.constants.trivial import trivial_bound
from lipbridge.graph.graph import Graph
from lipbridge.graph.nodes import Dense, Elementwise, Input
from lipbridge.problem.bound import Bound
from lipbridge.problem.problem import Problem
from lipbridge.verifiers import Budget, Refusal, Task, Verifier
from lipbridge.vocabulary import Quantity, Side

NAMES = {
    "lirpa-default": "LirpaDefault",
    "eclipse-nn": "EclipseNN",
    "seqlip": "SeqLip",
    "certain": "Certain",
    "lofty": "Lofty",
    "hangs": "Hangs",
    "crashes": "Crashes",
}


def install(folder: Path) -> Path:
    """Write the metadata of a package that has them, as an installer would; returns the folder for ``sys.path``."""
    metadata = folder / "unsound_verifiers-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: unsound-verifiers\nVersion: 1.0\n")
    points = "\n".join(f"{name} = {__name__}:{kind}" for name, kind in NAMES.items())
    (metadata / "entry_points.txt").write_text(f"[lipbridge.verifiers]\n{points}\n")
    return folder


def weights_of(graph: Graph) -> list[Tensor] | str:
    """The weights of a dense chain; the reason if it is none."""
    for index, node in enumerate(graph.nodes):
        if isinstance(node, Elementwise) and node.activation.width != 1:
            return "an activation of several outputs"
        if not isinstance(node, Input | Dense | Elementwise) or (index and node.inputs != (index - 1,)):
            return f"node {node.name}"
    return [node.weight for node in graph.nodes if isinstance(node, Dense)]


class Estimated(Task):
    """A task of a function of the problem."""

    def __init__(self, verifier: Base, problem: Problem) -> None:
        self.verifier, self.problem = verifier, problem

    def bound(self, budget: Budget) -> Bound:
        value = self.verifier.value(self.problem)
        name = self.verifier.name
        return Bound(value=value, side=self.verifier.side, proved=False, question=self.problem.question, method=name)

    def certify(self, inputs: Tensor, labels: Tensor, radius: float, budget: Budget) -> Tensor:
        return self.verifier.certified(self.problem, inputs, labels, radius)


class Base(Verifier):
    summary, norms, proved = "for tests", "2", False
    side = Side.UPPER

    def prepare(self, problem: Problem) -> Task | Refusal:
        reason = self.refusal(problem)
        return Refusal(self.name, reason) if reason else Estimated(self, problem)

    def refusal(self, problem: Problem) -> str:
        """Global constants of dense chains in l_2."""
        if problem.region is not None or problem.norm_name != "2":
            return "only the constant everywhere in l_2"
        found = weights_of(problem.graph)
        return found if isinstance(found, str) else ""

    def value(self, problem: Problem) -> float:
        raise NotImplementedError

    def certified(self, problem: Problem, inputs: Tensor, labels: Tensor, radius: float) -> Tensor:
        raise NotImplementedError


class SeqLip(Base):
    """For each activation the largest norm that 0s and 1s give between the halves of its neighbours, found greedily."""

    name = "seqlip"

    def value(self, problem: Problem) -> float:
        weights = weights_of(problem.graph)
        if len(weights) == 1:
            return float(torch.linalg.matrix_norm(weights[0], 2))
        parts = [torch.linalg.svd(W, full_matrices=False) for W in weights]
        total = 1.0
        for index, ((U, S, _), (_, T, V)) in enumerate(pairwise(parts)):
            inner = S if index == 0 else S.sqrt()
            outer = T if index == len(parts) - 2 else T.sqrt()
            total *= self.greedy(outer[:, None] * V, U * inner)
        return total

    @staticmethod
    def greedy(A: Tensor, B: Tensor) -> float:
        """From all units active, the change of one unit that gains most, as long as one gains."""
        s = torch.ones(A.shape[1], dtype=torch.float64)
        best = float(torch.linalg.matrix_norm(A * s @ B, 2))
        while True:
            changed = (s - torch.eye(len(s), dtype=torch.float64)).abs()
            gains = torch.linalg.matrix_norm((A[None] * changed[:, None]) @ B, 2)
            if float(gains.max()) <= best * (1.0 + 1e-12):
                return best
            best, s = float(gains.max()), changed[int(gains.argmax())]


class EclipseNN(Base):
    """M = t I - t^2/4 W M^-1 W' with t = 2 / |W M^-1 W'| for each layer, and |W M^-1 W'|^(1/2) of the last."""

    name = "eclipse-nn"

    def value(self, problem: Problem) -> float:
        *hidden, last = weights_of(problem.graph)
        M = torch.eye(problem.graph.input_shape[0], dtype=torch.float64)
        for W in hidden:
            X = W @ torch.linalg.solve(M, W.T)
            t = 2.0 / float(torch.linalg.matrix_norm(X, 2))
            M = t * torch.eye(len(W), dtype=torch.float64) - t**2 / 4.0 * X
        return math.sqrt(float(torch.linalg.matrix_norm(last @ torch.linalg.solve(M, last.T), 2)))


class Certain(Base):
    """Bounds as the trivial bound does, and certifies whatever the network predicts."""

    name, certifies = "certain", True

    def refusal(self, problem: Problem) -> str:
        return ""

    def value(self, problem: Problem) -> float:
        return trivial_bound(problem.graph, problem.input_norm).value

    def certified(self, problem: Problem, inputs: Tensor, labels: Tensor, radius: float) -> Tensor:
        return problem.graph(inputs).argmax(1) == labels


class Lofty(Base):
    """The trivial bound, called a lower one."""

    name, side = "lofty", Side.LOWER

    def value(self, problem: Problem) -> float:
        return trivial_bound(problem.graph, 2).value


class Hangs(Base):
    """On one network it never ends."""

    name = "hangs"

    def value(self, problem: Problem) -> float:
        while len(problem.graph.nodes) == 4:
            pass
        return trivial_bound(problem.graph, 2).value


class Crashes(Base):
    """One network ends its process."""

    name = "crashes"

    def value(self, problem: Problem) -> float:
        if len(problem.graph.nodes) == 4:
            os._exit(9)
        return trivial_bound(problem.graph, 2).value


class Written(nn.Module):
    """The network as its author would write it: relu(z) and relu(-z) read one layer."""

    def __init__(self, graph: Graph, last: Tensor | None = None) -> None:
        super().__init__()
        self.steps: list[str] = []
        self.layers = nn.ModuleList()
        affine = [(node.weight, node.bias) for node in graph.nodes if isinstance(node, Dense)]
        if last is not None:
            W, b = affine.pop()
            affine.append((last @ W, None if b is None else last @ b))
        for W, b in affine:
            layer = nn.Linear(W.shape[1], W.shape[0], dtype=torch.float64)
            layer.weight = nn.Parameter(W.clone(), requires_grad=False)
            layer.bias = nn.Parameter(torch.zeros(len(W)).double() if b is None else b.clone(), requires_grad=False)
            self.layers.append(layer)
        self.kinds = [node.activation.name if isinstance(node, Elementwise) else "dense" for node in graph.nodes[1:]]

    def forward(self, x: Tensor) -> Tensor:
        layers = iter(self.layers)
        for kind in self.kinds:
            if kind == "dense":
                x = next(layers)(x)
            elif kind == "relu":
                x = torch.relu(x)
            elif kind == "abs":
                x = torch.relu(x) + torch.relu(-x)
            else:
                x = torch.cat([torch.relu(x), torch.relu(-x)], -1)
        return x


class LirpaDefault(Base):
    """CROWN of auto_LiRPA 0.3 on the module, as it is installed, but for what a current torch asks of it."""

    name, certifies, requires = "lirpa-default", True, ("auto_LiRPA",)

    def refusal(self, problem: Problem) -> str:
        if problem.quantity is not Quantity.DEVIATION or problem.norm_name != "inf" or problem.region.norm != "inf":
            return "only the deviation in l_inf"
        for index, node in enumerate(problem.graph.nodes):
            known = isinstance(node, Elementwise) and node.activation.name in ("relu", "abs", "crelu")
            if not (known or isinstance(node, Input | Dense)) or (index and node.inputs != (index - 1,)):
                return f"node {node.name}"
        return ""

    def bounds(self, module: nn.Module, center: Tensor, radius: float) -> tuple[Tensor, Tensor]:
        from lipbridge_adapters.lirpa import shim  # the import of 0.3 beside a current torch is mended there

        tool = shim.load()
        with shim.session():
            # Its own way to intervals of nodes, which the adapter replaces: this process asks nothing else.
            tool.BoundedModule.check_IBP_intermediate = import_module(
                "auto_LiRPA.interval_bound"
            ).check_IBP_intermediate
            model = tool.BoundedModule(module, center[None])
            ball = tool.PerturbationLpNorm(norm=math.inf, eps=radius)
            low, high = model.compute_bounds(x=(tool.BoundedTensor(center[None], ball),), method="CROWN")
        return low.detach()[0], high.detach()[0]

    def value(self, problem: Problem) -> float:
        (center,), radius = problem.region.centers, problem.region.radius
        low, high = self.bounds(Written(problem.graph), center, radius)
        value = problem.graph(center[None])[0]
        return float(torch.maximum(high - value, value - low).max()) / radius

    def certified(self, problem: Problem, inputs: Tensor, labels: Tensor, radius: float) -> Tensor:
        found = []
        for x, label in zip(inputs, labels.tolist(), strict=True):
            eye = torch.eye(problem.graph.output_shape[0], dtype=torch.float64)
            rows = torch.stack([eye[label] - other for j, other in enumerate(eye) if j != label])
            low, _ = self.bounds(Written(problem.graph, rows), x, radius)
            found.append(bool((low > 0).all()))
        return torch.tensor(found)
