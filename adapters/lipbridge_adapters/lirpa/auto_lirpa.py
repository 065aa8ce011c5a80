"""Local output bounds and certified predictions by auto_LiRPA: IBP, CROWN and alpha-CROWN.

Source: Xu et al. 2020, "Automatic perturbation analysis for scalable certified robustness and beyond" (the tool);
Zhang et al. 2018 (CROWN); Xu et al. 2021 (alpha-CROWN). The tool never sees the user's module: it gets one built here
from the Graph, in float64, of nothing but sums of linear layers and the few nonlinear functions it bounds soundly.

Convolutions, and whatever else moves or mixes coordinates, are written as matrices first, if those are small: CROWN
keeps a matrix of that size for every activation anyway, and release 0.3's own convolution knows only two axes of space
with equal zero padding. Max pooling and sorting become comparisons, max(a, b) = b + relu(a - b).

Its arithmetic is not rounded outward. We widen what it returns by an a-priori estimate of its rounding error
(:meth:`Network.slack`), which makes a contradiction by a witness unlikely, but not impossible: nothing here is proved.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from lipbridge.activations.registry import SCALAR_FUNCTIONS, Term
from lipbridge.errors import InvalidArgument, LipbridgeError, MissingDependency, NumericalFailure, UnsupportedProblem
from lipbridge.graph.graph import Graph
from lipbridge.graph.nodes import (
    Add,
    Concat,
    Conv,
    ConvTranspose,
    Dense,
    Elementwise,
    Gather,
    GroupSort,
    MaxPool,
    Node,
    Normalize,
    Reshape,
    Softmax,
)
from lipbridge.linalg import vector_norm
from lipbridge.lowering.dense import lower_to_dense
from lipbridge.problem.bound import Bound
from lipbridge.problem.options import Option, read_options
from lipbridge.problem.problem import Problem
from lipbridge.problem.question import Ball
from lipbridge.problem.verifier import Budget, Refusal, Task, Verifier
from lipbridge.rigor.running_error import window_places
from lipbridge.rounding.scalars import UNIT, gamma
from lipbridge.vocabulary import Norm, Quantity, Side, Status, exponent
from lipbridge_adapters.lirpa import shim

Method = Literal["IBP", "CROWN", "alpha-CROWN"]
METHODS: tuple[Method, ...] = ("IBP", "CROWN", "alpha-CROWN")
_NAMES = {"IBP": "IBP", "CROWN": "CROWN", "alpha-CROWN": "CROWN-Optimized"}

#: Every shortcut of the tool that replaces a computed bound by a cheaper one. With the first two on, release 0.3 is
#: unsound as soon as two functions read one pre-activation: it bounds only the neurons that one of them needs.
SOUND_OPTIONS: dict[str, object] = {
    "sparse_intermediate_bounds": False,
    "sparse_intermediate_bounds_with_ibp": False,
    "sparse_conv_intermediate_bounds": False,
    "sparse_features_alpha": False,
    "sparse_spec_alpha": False,
    "conv_mode": "matrix",
    "verbosity": 0,
}


# --- the network that the tool sees --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Function:
    """A nonlinear function of the tool: its value, its steepest line, an upper bound of |value|, and its methods.

    ``steepness(m)`` and ``magnitude(m)`` hold for |t| <= m. ``reach`` is where release 0.3's relaxation ends.
    """

    value: Callable[[Tensor], Tensor]
    magnitude: Callable[[Tensor], Tensor]
    steepness: Callable[[Tensor], Tensor] = torch.ones_like
    methods: tuple[Method, ...] = METHODS
    reach: float = math.inf


FUNCTIONS: dict[str, Function] = {
    "relu": Function(torch.relu, lambda m: m),
    "abs": Function(torch.abs, lambda m: m),
    "tanh": Function(torch.tanh, torch.ones_like, reach=500.0),
    "sigmoid": Function(torch.sigmoid, torch.ones_like, reach=500.0),
    "sin": Function(torch.sin, torch.ones_like),
    "cos": Function(torch.cos, torch.ones_like),
    # A product of two bounded factors, whose planes are as steep as a factor is large.
    "silu": Function(lambda z: z * torch.sigmoid(z), lambda m: m, lambda m: 1.0 + m, reach=500.0),
    # exp(min(t, 0)), for elu; the tool has no minimum with a constant that it bounds by lines.
    "exp_negative": Function(lambda z: torch.exp(-torch.relu(-z)), torch.ones_like),
    # The tool bounds softplus by intervals only.
    "softplus": Function(nn.Softplus(), lambda m: m + 1.0, methods=("IBP",)),
}


@dataclass(frozen=True, eq=False)
class Affine:
    """``constant + sum of matrix @ signal`` over signals by index; a vector stands for a diagonal matrix."""

    terms: dict[int, Tensor]
    constant: Tensor

    def image(self, matrix: Tensor, bias: Tensor | None = None) -> Affine:
        """``matrix @ self + bias``."""
        constant = matrix @ self.constant
        return Affine(
            {signal: _times(matrix, weight) for signal, weight in self.terms.items()},
            constant if bias is None else constant + bias,
        )

    def scaled(self, factor: float, shift: float = 0.0) -> Affine:
        return Affine(
            {signal: factor * weight for signal, weight in self.terms.items()}, factor * self.constant + shift
        )

    def rows(self, index: Tensor) -> Affine:
        """The coordinates ``index``."""
        return Affine({signal: _rows(weight, index) for signal, weight in self.terms.items()}, self.constant[index])


def _times(matrix: Tensor, weight: Tensor) -> Tensor:
    return matrix * weight if weight.ndim == 1 else matrix @ weight


def _rows(weight: Tensor, index: Tensor) -> Tensor:
    if weight.ndim == 2:
        return weight[index]
    picked = weight.new_zeros(len(index), len(weight))
    return picked.scatter(1, index[:, None], weight[index, None])


def _full(weight: Tensor) -> Tensor:
    return torch.diag(weight) if weight.ndim == 1 else weight


def _added(a: Tensor, b: Tensor) -> Tensor:
    return a + b if a.ndim == b.ndim else _full(a) + _full(b)


@dataclass(frozen=True)
class Call:
    """A function of FUNCTIONS, by name, of one earlier signal."""

    name: str
    source: int


def _sum(forms: list[Affine]) -> Affine:
    terms: dict[int, Tensor] = {}
    for form in forms:
        for signal, weight in form.terms.items():
            terms[signal] = _added(terms[signal], weight) if signal in terms else weight
    return Affine(terms, torch.stack([form.constant for form in forms]).sum(0))


def _stacked(forms: list[Affine]) -> Affine:
    if len(forms) == 1:
        return forms[0]
    total = sum(len(form.constant) for form in forms)
    padded: list[Affine] = []
    start = 0
    for form in forms:
        rows = torch.arange(start, start + len(form.constant), device=form.constant.device)
        start += len(rows)

        def pad(part: Tensor, rows: Tensor = rows) -> Tensor:
            return part.new_zeros(total, *part.shape[1:]).index_copy(0, rows, part)

        padded.append(Affine({signal: pad(_full(weight)) for signal, weight in form.terms.items()}, pad(form.constant)))
    return _sum(padded)


def _in_vectors(graph: Graph) -> Graph:
    """The same network with one axis throughout, and dense layers only.

    Raises:
        UnsupportedProblem: for a normalisation, and for layers that are too large as matrices.
    """
    for node in graph.nodes:
        if isinstance(node, Softmax):
            raise UnsupportedProblem(f"layer `{node.name}` is a softmax; bound the network before it, up to the logits")
        if isinstance(node, Normalize):
            raise UnsupportedProblem(
                f"layer `{node.name}` normalises by a deviation of its input, which is not bounded here"
            )
    several = any(len(node.shape) > 1 for node in graph.nodes[1:])
    if several or any(isinstance(node, Conv | ConvTranspose | Gather) for node in graph.nodes):
        return lower_to_dense(graph).graph
    return graph


class Network(nn.Module):
    """A Graph as sums of linear layers and unary functions, on flat float64 inputs ``(batch, n)``; outputs too.

    Signal 0 is the input; signal i is an affine form of earlier signals or a function of one. An activation that is
    linear on both sides of zero is lowered by method: with lines (CROWN) to ``a z + (b - a) relu z``, which keeps its
    components correlated and is tighter; with intervals (IBP) to relu z, relu -z or |z|, which are exact there.
    Nothing but affine forms ever reads the input: the tool takes an l_2 ball for a point in any other operation.

    Raises:
        UnsupportedProblem: naming the first layer or activation that it cannot take.
    """

    def __init__(self, graph: Graph, method: Method) -> None:
        super().__init__()
        self.method: Method = method
        self.steps: list[Affine | Call] = []  # signal i + 1
        self.layers = nn.ModuleList()
        self.input_size = math.prod(graph.input_shape)
        self._known: dict[tuple[object, ...], int] = {}
        self.device = graph.device
        graph = _in_vectors(graph)
        values: list[Affine] = [self._read(0)]
        for index, node in enumerate(graph.nodes[1:], start=1):
            values.append(self._lower(node, index, [values[i] for i in node.inputs], graph))
        self._affine(values[-1])

    def forward(self, x: Tensor) -> Tensor:
        signals = [x]
        for step, layers in zip(self.steps, self.layers, strict=True):
            if isinstance(step, Call):
                signals.append(FUNCTIONS[step.name].value(signals[step.source]))
                continue
            parts = [layer(signals[i]) for i, layer in zip(step.terms, cast(nn.ModuleList, layers), strict=True)]
            total = parts[0]
            for part in parts[1:]:
                total = total + part
            signals.append(total)
        return signals[-1]

    @property
    def widths(self) -> list[int]:
        """The widths of all signals, input first."""
        widths = [self.input_size]
        for step in self.steps:
            widths.append(widths[step.source] if isinstance(step, Call) else len(step.constant))
        return widths

    def sample_bytes(self) -> int:
        """About how much memory the bounds of one input take: the coefficients of every signal's two lines."""
        widths = self.widths
        if self.method == "IBP":
            return 64 * sum(widths)
        affine = [width for width, step in zip(widths[1:], self.steps, strict=True) if isinstance(step, Affine)]
        lines = 96 * max(affine) * max(widths)
        # The optimiser keeps the graph of a whole pass, and slopes for every pair of an output and a neuron.
        return lines if self.method == "CROWN" else 2 * lines + 64 * sum(affine) * sum(widths)

    def slack(self, centers: Tensor, radius: float, release: tuple[int, ...]) -> Tensor:
        """Per output, an estimate ``(batch, outputs)`` of the rounding error of its bounds over the balls.

        Running error analysis in the worst case: |values| through |W|, an error gamma_n |W||value| for each affine
        form, with n the number of additions on the whole way. A function f passes three times its steepness: once for
        f itself, twice because its lines were drawn for an interval that is itself off. Sources: Higham 2002, ch. 3.

        Raises:
            UnsupportedProblem: if a pre-activation may leave the range on which release 0.3 is sound.
        """
        g = gamma(16 + sum(width + 8 for width in self.widths))
        sizes: list[Tensor] = [centers.abs() + radius]
        errors: list[Tensor] = [4 * UNIT * sizes[0]]
        for step in self.steps:
            if isinstance(step, Call):
                function, m, e = FUNCTIONS[step.name], sizes[step.source], errors[step.source]
                if release < (0, 4) and self.method != "IBP" and bool((m > function.reach).any()):
                    raise UnsupportedProblem(
                        f"inputs of {step.name} may exceed {function.reach:g}, where release 0.3 is not sound; use IBP"
                    )
                errors.append(3 * function.steepness(m) * e + 16 * UNIT * (1 + m + function.magnitude(m)))
                sizes.append(function.magnitude(m))
                continue
            total, error = step.constant.abs().expand(len(centers), -1), centers.new_zeros(())
            for signal, weight in step.terms.items():
                total = total + sizes[signal] @ weight.abs().T
                error = error + errors[signal] @ weight.abs().T
            sizes.append(total)
            errors.append(error + g * total)
        return 2 * errors[-1]

    # -- building --

    def _lower(self, node: Node, index: int, sources: list[Affine], graph: Graph) -> Affine:
        flat = all(len(graph.nodes[i].shape) == 1 for i in node.inputs)
        if isinstance(node, Dense) and flat:
            return sources[0].image(node.weight, node.bias)
        if isinstance(node, Add):
            return _sum(sources)
        if isinstance(node, Reshape) and node.axes is None:
            return sources[0]
        if isinstance(node, Concat) and node.axis == 0:
            return _stacked(sources)
        if isinstance(node, Elementwise) and (flat or node.activation.width == 1):
            return self._activation(node, sources[0], index)
        if isinstance(node, MaxPool):
            return self._maxima(node, sources[0], index, graph.nodes[node.inputs[0]].shape)
        if isinstance(node, GroupSort):
            return self._sorted(node, sources[0], index)
        where = "" if flat else f" on the shape {graph.nodes[node.inputs[0]].shape}"
        raise UnsupportedProblem(f"layer `{node.name}`: {type(node).__name__}{where} is not handled")

    def _maxima(self, node: MaxPool, source: Affine, index: int, shape: tuple[int, ...]) -> Affine:
        """Window by window a tournament of its entries."""
        places = window_places(node, shape[1:], self.device)  # (windows, entries), -1 outside
        inside = places.gather(1, (places >= 0).to(torch.uint8).argmax(1, keepdim=True))
        places = torch.where(places >= 0, places, inside)  # an entry counted twice changes no maximum
        channels = torch.arange(shape[0], device=self.device) * math.prod(shape[1:])
        values = self._read(self._linear((index,), source))
        entries = [values.rows((channels[:, None] + column).flatten()) for column in places.T]
        turn = 0
        while len(entries) > 1:
            first, second, *rest = entries
            turn += 1
            entries = [*rest, _sum([second, self._excess((index, "max", turn), first, second)])]
        return entries[0]

    def _sorted(self, node: GroupSort, source: Affine, index: int) -> Affine:
        """Odd-even transposition: neighbours in a group change places where they stand the wrong way round."""
        values = self._read(self._linear((index,), source))
        size, after = len(values.constant), math.prod(node.shape[1:])
        at = torch.arange(size, device=self.device).reshape(-1, node.group, after)
        columns = [values.rows(at[:, place].flatten()) for place in range(node.group)]
        for turn in range(node.group):
            for low in range(turn % 2, node.group - 1, 2):
                excess = self._excess((index, "sort", turn, low), columns[low], columns[low + 1])
                columns[low] = _sum([columns[low], excess.scaled(-1.0)])
                columns[low + 1] = _sum([columns[low + 1], excess])
        back = torch.empty(size, dtype=torch.long, device=self.device)
        back[torch.cat([at[:, place].flatten() for place in range(node.group)])] = torch.arange(
            size, device=self.device
        )
        return _stacked(columns).rows(back)

    def _excess(self, key: tuple[object, ...], a: Affine, b: Affine) -> Affine:
        """``relu(a - b)``."""
        return self._function("relu", key, _sum([a, b.scaled(-1.0)]))

    def _activation(self, node: Elementwise, source: Affine, index: int) -> Affine:
        activation = node.activation
        key = (index,)
        if activation.sides is not None:
            return _stacked([self._kink(key, source, left, right) for left, right in activation.sides])
        return _stacked(
            [_sum([self._term(key, source, term) for term in component]) for component in activation.components]
        )

    def _term(self, key: tuple[object, ...], source: Affine, term: Term) -> Affine:
        """``c f(s t + o)``."""
        name, c, s, o = term.function, term.coefficient, term.scale, term.offset
        inner, key = source.scaled(s, o), (*key, s, o)
        if name == "identity":
            return self._read(self._linear(key, inner)).scaled(c)
        sides = SCALAR_FUNCTIONS[name].sides(term.parameters)
        if sides is not None:
            return self._kink(key, inner, *sides).scaled(c)
        if name == "elu":
            (alpha,) = term.parameters
            part = self._function("exp_negative", key, inner).scaled(alpha, -alpha)
            return _sum([self._function("relu", key, inner), part]).scaled(c)
        if name == "sin_squared":  # (1 - cos 2t) / 2
            return self._function("cos", (*key, 2), inner.scaled(2.0)).scaled(-0.5 * c, 0.5 * c)
        if name == "softplus":
            (beta,) = term.parameters
            return self._function("softplus", (*key, beta), inner.scaled(beta)).scaled(c / beta)
        return self._function(name, key, inner).scaled(c)

    def _kink(self, key: tuple[object, ...], z: Affine, left: float, right: float) -> Affine:
        """The function with slopes ``left`` and ``right`` of zero, lowered as the method likes it."""
        if left == right:
            return self._read(self._linear(key, z)).scaled(left)
        if self.method == "IBP" and left == -right:
            return self._function("abs", key, z).scaled(right)
        lines = self.method != "IBP"
        slope = right - left if lines else right
        parts = [self._function("relu", key, z).scaled(slope)] if slope else []
        if left and lines:
            parts.append(self._read(self._linear(key, z)).scaled(left))
        elif left:
            parts.append(self._function("relu", (*key, "minus"), z.scaled(-1.0)).scaled(-left))
        return _sum(parts)

    def _function(self, name: str, key: tuple[object, ...], argument: Affine) -> Affine:
        if name not in FUNCTIONS:
            raise UnsupportedProblem(f"{name} is not supported by auto_LiRPA")
        if self.method not in FUNCTIONS[name].methods:
            raise UnsupportedProblem(f"{name} is bounded by {', '.join(FUNCTIONS[name].methods)} only")
        known = (name, *key)
        if known not in self._known:
            source = self._linear(key, argument)
            self._known[known] = self._append(Call(name, source), nn.ModuleList())
        return self._read(self._known[known])

    def _linear(self, key: tuple[object, ...], form: Affine) -> int:
        if key not in self._known:
            self._known[key] = self._affine(form)
        return self._known[key]

    def _affine(self, form: Affine) -> int:
        layers = nn.ModuleList()
        form = Affine({signal: _full(weight) for signal, weight in form.terms.items()}, form.constant)
        for weight in form.terms.values():
            layer = nn.Linear(weight.shape[1], weight.shape[0], bias=not layers, device="meta", dtype=torch.float64)
            layer.weight = nn.Parameter(weight.clone(), requires_grad=False)
            if not layers:
                layer.bias = nn.Parameter(form.constant.clone(), requires_grad=False)
            layers.append(layer)
        return self._append(form, layers)

    def _append(self, step: Affine | Call, layers: nn.ModuleList) -> int:
        self.steps.append(step)
        self.layers.append(layers)
        return len(self.steps)

    def _read(self, signal: int) -> Affine:
        ones = torch.ones(self.widths[signal], dtype=torch.float64, device=self.device)
        return Affine({signal: ones}, torch.zeros_like(ones))


# --- running the tool ----------------------------------------------------------------------------------------------


class _Runner:
    """The tool on one network: bounds of its outputs over balls around flat centres."""

    def __init__(self, network: Network, budget: Budget, iterations: int) -> None:
        self.tool = shim.load()
        self.release = shim.version(self.tool)
        self.network, self.method, self.budget = network, network.method, budget
        need = network.sample_bytes()
        if budget.memory // 2 < need:
            raise MemoryError(f"{self.method} needs about {2 * need / 2**20:.3g} MiB for one input")
        self.most = min(budget.memory // 2 // need, 1024 if self.method == "IBP" else 64)
        settings = {"iteration": iterations}
        start = torch.zeros(1, self.network.input_size, dtype=torch.float64, device=self.network.device)
        with shim.session():
            self.model = self.tool.BoundedModule(
                self.network,
                start,
                bound_opts={**SOUND_OPTIONS, "optimize_bound_args": settings},
                device=start.device,
                custom_ops=shim.operators(self.tool),
            )

    def chunks(
        self, centers: Tensor, radius: float, norm: Norm, *, upper: bool = True
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Lower and upper bounds ``(chunk, outputs)``, chunk after chunk, widened by the slack; upper ones on demand.

        The first chunk is one input, and chunks double only while they are quick, so that whoever watches the clock
        between them gets the chance to.
        """
        done, size = 0, 1
        while done < len(centers):
            part, start = centers[done : done + size], time.perf_counter()
            slack = self.network.slack(part, radius, self.release)
            with shim.session(), torch.set_grad_enabled(self.method == "alpha-CROWN"):
                ball = self.tool.PerturbationLpNorm(norm=exponent(norm), eps=radius)
                point = self.tool.BoundedTensor(part, ball)
                low, high = self.model.compute_bounds(x=(point,), method=_NAMES[self.method], bound_upper=upper)
            low = low.detach() - slack
            high = high.detach() + slack if upper else -low
            if not bool((low.isfinite() & high.isfinite()).all()):
                raise NumericalFailure("the tool's bounds are infinite or NaN")
            yield low, high
            done += len(part)
            if time.perf_counter() - start < self.budget.seconds / 16:
                size = min(2 * size, self.most)


def _lowered(graph: Graph, asked: str | None) -> Network:
    """The Graph lowered for the method asked for, or for CROWN and, where CROWN cannot take it, IBP.

    Raises:
        UnsupportedProblem: the reason of the first method, if none can.
    """
    if len(graph.output_shape) != 1:
        raise UnsupportedProblem(f"outputs of shape {graph.output_shape} are not handled, only vectors")
    reasons: list[UnsupportedProblem] = []
    methods: tuple[Method, ...] = ("CROWN", "IBP")
    if asked is not None:
        methods = tuple(method for method in METHODS if method.lower() == asked.lower())
    for method in methods:
        try:
            return Network(graph, method)
        except UnsupportedProblem as error:
            reasons.append(error)
    raise reasons[0]


class AutoLirpaVerifier(Verifier):
    """auto_LiRPA: how far the outputs can move inside an l_2 or l_inf ball, and which predictions hold there.

    The method is CROWN unless another is asked for, or IBP for activations that the tool bounds by intervals only.
    """

    name = "auto_lirpa"
    summary = "local output bounds and certified predictions by auto_LiRPA: IBP, CROWN, alpha-CROWN"
    norms = "2, inf (local)"
    proved = False
    certifies = True
    options = (
        Option(
            name="method",
            type=str,
            default=None,
            help=f"{', '.join(METHODS)}; by default CROWN, or IBP where CROWN cannot",
            domain=f"be one of {', '.join(METHODS)}",
            allows=lambda value: value.lower() in [method.lower() for method in METHODS],
        ),
        Option(
            name="iterations",
            type=int,
            default=20,
            help="of alpha-CROWN",
            domain="be a whole number of at least 1",
            allows=lambda value: value >= 1,
        ),
    )
    requires = ("auto_LiRPA",)
    install = shim.INSTALL

    def load(self) -> None:
        """Import the tool, mended."""
        shim.load()

    def prepare(self, problem: Problem) -> Task | Refusal:
        """It takes the deviation over l_2 and l_inf balls of networks with the functions that it bounds.

        Convolutions only if their matrices are small (:func:`lipbridge.lowering.dense.lower_to_dense`).
        """
        try:
            return _Task(problem, _require(problem), _lowered(problem.graph, None))
        except UnsupportedProblem as error:
            return Refusal(self.name, str(error))


class _Task(Task):
    """The network lowered for the method that the tool takes by default."""

    def __init__(self, problem: Problem, balls: Ball, network: Network) -> None:
        self.problem, self.balls, self.network = problem, balls, network

    def _lowered(self, options: Mapping[str, Any]) -> Network:
        method: str | None = options["method"]
        known = method is None or method.lower() == self.network.method.lower()
        return self.network if known else _lowered(self.problem.graph, method)

    def bound(self, budget: Budget) -> Bound:
        """sup ||f(x) - f(c)||_p / r over each l_p ball from the interval of every output; the largest over the balls.

        The Bound's ``extra`` has ``values`` and ``seconds_per_ball`` by method, and ``centers_done``. Law: no point of
        a ball moves the output further than value times radius.

        Raises:
            InvalidArgument: for an option of the budget out of its domain.
        """
        start = time.perf_counter()
        options = read_options(AutoLirpaVerifier.name, AutoLirpaVerifier.options, budget.options)
        problem, balls = self.problem, self.balls
        values: list[float] = []
        name, status, detail, value = "auto_LiRPA", Status.OK, "", math.nan
        extra: dict[str, object] = {}
        try:
            network = self._lowered(options)
            name = f"auto_LiRPA {network.method}"
            for part in _deviations(_Runner(network, budget, options["iterations"]), problem.graph, balls):
                values.extend(part)
                if time.perf_counter() - start > budget.seconds:
                    break
            if len(values) == len(balls.centers):
                value = max(values)
            else:
                status = Status.TIMEOUT
                detail = f"{len(values)} of {len(balls.centers)} balls done; the largest so far is {max(values):.6g}"
            per_ball = (time.perf_counter() - start) / len(values)
            extra = {"values": {network.method: values}, "seconds_per_ball": {network.method: per_ball}}
        except InvalidArgument:
            raise
        except Exception as error:  # whatever the tool does is a row, not the end of a study
            status, detail = _outcome(error)
        return Bound(
            value=value,
            side=Side.UPPER,
            proved=False,
            question=problem.question,
            method=name,
            seconds=time.perf_counter() - start,
            status=status,
            detail=detail,
            extra={**extra, "centers_done": len(values)},
        )

    def certify(self, inputs: Tensor, labels: Tensor, radius: float, budget: Budget) -> Tensor:
        """Bool ``(n,)``: whether f_y - f_j stays positive on the whole closed ball for every rival j of the label y.

        The differences are made part of the last layer, so their common part cancels before it is bounded. Each must
        exceed the slack of :meth:`Network.slack`, an estimate of float64 rounding. Inputs not reached within the time
        limit are not certified.

        Raises:
            InvalidArgument: for a radius, label or shape out of its domain.
            UnsupportedProblem: for a network or method that the tool cannot take.
            LipbridgeError: if the tool fails, in one line.
        """
        start = time.perf_counter()
        options = read_options(AutoLirpaVerifier.name, AutoLirpaVerifier.options, budget.options)
        graph, norm = self.problem.graph, self.balls.norm
        _check(graph, inputs, labels, radius)
        outputs = graph.output_shape[0]
        result = torch.zeros(len(inputs), dtype=torch.bool)
        try:
            network = self._lowered(options)
            method, device = network.method, network.device
            x = inputs.to(device, torch.float64)
            predicted = graph(x).argmax(-1).cpu()
            for label in sorted(set(_listed(labels))):
                rows = torch.nonzero((labels.cpu() == label) & (predicted == label)).flatten()
                if not len(rows):
                    continue
                rivals = torch.eye(outputs, dtype=torch.float64, device=device)
                margins = (rivals[label] - rivals)[torch.arange(outputs, device=device) != label]
                if not len(margins):
                    result[rows] = True
                    continue
                runner = _Runner(Network(graph.compose_output(margins), method), budget, options["iterations"])
                done = 0
                for low, _ in runner.chunks(x[rows.to(device)].flatten(1), radius, norm, upper=False):
                    result[rows[done : done + len(low)]] = (low > 0).all(-1).cpu()
                    done += len(low)
                    if time.perf_counter() - start > budget.seconds:
                        return result
        except LipbridgeError:
            raise
        except Exception as error:
            raise LipbridgeError(f"auto_LiRPA: {_outcome(error)[1]}") from error
        return result


def _require(problem: Problem) -> Ball:
    """The balls of a problem that the tool can take, as far as norms and quantity go."""
    balls = problem.region
    if problem.quantity is not Quantity.DEVIATION or balls is None:
        raise UnsupportedProblem(
            "it bounds the deviation from a centre, which compare and certify ask for; release 0.3 has no Jacobian, "
            "hence no Lipschitz constant"
        )
    if balls.norm not in (2, "inf"):
        raise UnsupportedProblem(f"l{balls.norm} balls are not offered, only l2 and linf")
    if not problem.input_norm == problem.output_norm == balls.norm:
        raise UnsupportedProblem(f"the ball is l{balls.norm}, so both norms must be, not {problem.norm_name}")
    return balls


def _deviations(runner: _Runner, graph: Graph, balls: Ball) -> Iterator[list[float]]:
    """sup ||f(x) - f(c)|| / r of the balls, chunk after chunk."""
    centers = balls.centers.to(runner.network.device, torch.float64)
    points, done = centers.flatten(1), 0
    for low, high in runner.chunks(points, balls.radius, balls.norm):
        part = slice(done, done + len(low))
        done += len(low)
        value = graph(centers[part])
        slack = runner.network.slack(points[part], balls.radius, runner.release)  # once more, for f(c) itself
        reach = torch.maximum(high - value, value - low) + slack
        norm = vector_norm(reach, balls.norm, dim=-1) / balls.radius
        yield _listed(norm * (1 + gamma(reach.shape[1] + 8)))


def _listed(values: Tensor) -> list[Any]:
    return cast(Any, values).tolist()


def _check(graph: Graph, inputs: Tensor, labels: Tensor, radius: float) -> None:
    if not (radius > 0 and math.isfinite(radius)):
        raise InvalidArgument("radius", "be above 0 and finite", radius)
    if tuple(inputs.shape[1:]) != graph.input_shape:
        raise InvalidArgument(
            "inputs", f"have shape (n, {', '.join(map(str, graph.input_shape))})", tuple(inputs.shape)
        )
    if labels.shape != inputs.shape[:1]:
        raise InvalidArgument("labels", f"have shape ({len(inputs)},)", tuple(labels.shape))
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < graph.output_shape[0]:
        raise InvalidArgument("labels", f"be below {graph.output_shape[0]}", int(labels.max()))


def _outcome(error: Exception) -> tuple[Status, str]:
    """The status and the one-line detail of an exception."""
    text = " ".join(str(error).split())[:300] or type(error).__name__
    if isinstance(error, UnsupportedProblem):
        return Status.UNSUPPORTED, text
    if isinstance(error, MissingDependency):
        return Status.MISSING, text
    if isinstance(error, MemoryError) or "not enough memory" in text or "out of memory" in text:
        return Status.MEMORY, text
    return Status.FAILED, text if isinstance(error, LipbridgeError) else f"{type(error).__name__}: {text}"
