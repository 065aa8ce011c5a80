"""The training penalty: the trivial bound of a module as a differentiable scalar."""

import weakref
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import count
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor, nn

from lipbridge.constants.trivial import trivial_bound
from lipbridge.errors import InvalidArgument, UnknownName
from lipbridge.frontend.capture import read_module, tensor_of
from lipbridge.frontend.export import unwrapped
from lipbridge.frontend.program import ProgramReader, Reading
from lipbridge.graph.geometry import adjoint_geometry, geometry
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
from lipbridge.graph.rules import Rule
from lipbridge.linalg import vector_norm
from lipbridge.norms.conv_geometry import Convolution
from lipbridge.norms.estimate import dual_matrix, estimate_by_dual
from lipbridge.norms.gram_convolution import conv_dual
from lipbridge.norms.power import initial_vector, power_step
from lipbridge.problem.bound import Bound
from lipbridge.training.live_weights import LiveLayer, check_live, fixed_factors, live_layers, require_no_choice
from lipbridge.vocabulary import Norm, as_norm, dual

_HANDLES = count()

Form = Literal["linear", "log"]
Method = Literal["gram", "power"]


class TrivialBoundPenalty(nn.Module):
    """The trivial bound of ``module`` as a penalty: ``loss + weight * penalty()``.

    Two lines in anybody's training loop (plain PyTorch, Lightning, DDP)::

        penalty = TrivialBoundPenalty(model, norm=2)
        loss = criterion(model(x), y) + 0.03 * penalty()

    The weights are read live, so gradients flow to the module's parameters. The penalty holds only its own state (as
    buffers, saved with ``state_dict``), not the module. Values are estimates: :func:`lipbridge.trivial_bound` proves.

    Args:
        module: what :func:`lipbridge.capture` can read. Weights that are computed on the way (parametrised,
            standardised, scaled) are computed anew in each call. The scale of a BatchNorm counts with the layer before
            it, by the running statistics as they are at each call.
        norm: 1, 2 or "inf".
        form: ``linear`` for the bound itself, ``log`` for its logarithm.
        method: for l_2. ``gram`` penalises a Schatten norm of high order by Gram iteration: within some per cent above
            the spectral norm, and it flattens the whole top of the spectrum, which makes the bound tight. ``power``
            penalises the largest singular value alone, by warm power steps (for a convolution the largest block of
            frequencies). (In l_1 and l_inf the penalty is on the l_32 norm of column or row sums.)
        every: calls between two refreshes of the penalty's gradient with respect to the weights; in between it is
            held. By default 16 for ``gram``, whose refresh costs some matrix products, and 1 for the others.
        squarings: s of ``gram``, whose order is 2 (2^s + 1). A higher order ends tighter but must be refreshed more
            often: 4 with 16 calls is forgiving; 6 with 2 to 5 calls is tightest.
        input_shape: as for :func:`lipbridge.capture`.

    Raises:
        UnsupportedOperation: for a layer outside the Graph's nodes, or one that does not follow the module's
            parameters and buffers: on making, all of them are changed (and put back), and what is read live must be
            what a fresh capture reads.

    Between refreshes the value is the linear function ``offset + sum <G_l, W_l>`` that touches the (smoothed) trivial
    bound at the last refresh, so a call costs one inner product a layer.

    Source: Kuang et al., arXiv 2603.28113 (the trivial bound in the loss); the held gradients are ours.
    Law: at a refresh, value and gradient are those of the product of the layers' (smoothed) norms.
    """

    def __init__(
        self,
        module: nn.Module,
        norm: Norm | str = 2,
        form: Form = "linear",
        *,
        method: Method = "gram",
        every: int | None = None,
        squarings: int = 4,
        input_shape: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        if form not in get_args(Form):
            raise UnknownName("penalty form", form, get_args(Form))
        if method not in get_args(Method):
            raise UnknownName("penalty method", method, get_args(Method))
        if every is not None and (not _is_count(every) or every < 1):
            raise InvalidArgument("every", "be a whole number, at least 1", every)
        if not _is_count(squarings) or not 1 <= squarings <= 10:
            raise InvalidArgument("squarings", "be a whole number between 1 and 10", squarings)
        self.norm: Norm = as_norm(norm)
        self.form, self.squarings = form, squarings
        self.method = method if self.norm == 2 else "extreme"
        self.every = every or (16 if self.method == "gram" else 1)
        reading = read_module(module, input_shape)
        graph = reading.graph
        # Held in plain tuples: the module must not become a submodule, whose weights state_dict would save twice.
        network = unwrapped(module)
        require_no_choice(reading)
        readers = live_layers(network, reading)
        if not readers:
            raise InvalidArgument("module", "have a layer with weights", type(module).__name__)
        self._source = (network, reading)
        self._plan = (graph, readers)
        _check_live(network, reading, readers)
        self._geometries: dict[int, Convolution] = {}
        for index, live in readers.items():
            found = None if live.scalar else _geometry(live.node, graph.nodes[live.node.inputs[0]].shape)
            if found is not None:
                self._geometries[index] = found
        self._factors = fixed_factors(graph, self.norm, readers)
        for index, live in readers.items():
            weight = live.read()
            self.register_buffer(f"gradient_{index}", torch.zeros(weight.shape, device=weight.device))
            if self.method == "power" and not live.scalar and index not in self._geometries:
                self.register_buffer(f"vector_{index}", initial_vector(weight.shape[1], weight.device))
        self.register_buffer("offset", torch.zeros((), device=next(self.buffers()).device))
        self.calls = 0
        self._pending = False  # a refresh that fell on a call without effect, see `add_gradient`
        self._handle = next(_HANDLES)
        _ALIVE[self._handle] = self

    def forward(self) -> Tensor:
        """The penalty as a float32 tensor without axes, on the device of the weights."""
        weights = self._weights()
        if torch.compiler.is_compiling():
            states = list(cast(Iterable[Tensor], self.buffers()))
            torch.ops.lipbridge.refresh([weight.detach() for weight in weights], states, self._handle)
        elif self._due():
            self.refresh(weights)
        value = cast(Tensor, self.offset)
        for index, weight in zip(self._plan[1], weights, strict=True):
            gradient = cast(Tensor, getattr(self, f"gradient_{index}"))
            value = value + torch.dot(gradient.view(-1), weight.reshape(-1).to(gradient.dtype))
        return value

    @torch.no_grad()
    def add_gradient(self, weight: float, stride: int = 1) -> None:
        """Add ``weight`` times the penalty's gradient to the parameters' ``grad``, after ``loss.backward()``.

        With ``stride`` above one it is added in one of so many calls, with so many times the weight: the same force on
        average at less memory traffic, for optimisers with momentum. With one it is the same step as
        ``(loss + weight * penalty()).backward()`` at a fraction of its cost, since autograd need not carry the held
        gradients. Every process of a distributed run adds the same numbers.

        Raises:
            InvalidArgument: if a weight is computed from other tensors (parametrised, scaled by BatchNorm), or has
                no ``grad`` yet.
        """
        if self._due():
            self._pending = True
        if (self.calls - 1) % stride:
            return
        if self._pending:
            self.refresh(self._weights())
            self._pending = False
        for index, live in self._plan[1].items():
            gradient = cast(Tensor, getattr(self, f"gradient_{index}"))
            grad = live.tensor.grad if live.direct else None
            if grad is None or grad.numel() != gradient.numel():
                name = self._plan[0].nodes[index].name
                raise InvalidArgument("module", "have a parameter with a gradient as the weight of each layer", name)
            grad.add_((gradient.T if live.transposed else gradient).reshape(grad.shape), alpha=weight * stride)

    @property
    def direct(self) -> bool:
        """Whether :meth:`add_gradient` can be used: each weight is a parameter or a parameter's transpose."""
        return all(live.direct for live in self._plan[1].values())

    def bound(self) -> Bound:
        """The proved trivial bound of the weights as they are now. It waits for the device: not for every step."""
        network, reading = self._source
        return trivial_bound(_read_anew(network, reading), self.norm)

    def _weights(self) -> list[Tensor]:
        return [live.read() for live in self._plan[1].values()]

    def _due(self) -> bool:
        self.calls += 1
        return (self.calls - 1) % self.every == 0

    def refresh(self, weights: Sequence[Tensor]) -> None:
        """Bring the linear function up to date with the weights, one tensor a layer."""
        with torch.no_grad(), _full_precision(weights[0].device.type):
            current = [weight.to(torch.float32) for weight in weights]
            gradients = [cast(Tensor, getattr(self, f"gradient_{index}")) for index in self._plan[1]]
            norms = [self._dual(*parts) for parts in zip(self._plan[1], current, gradients, strict=True)]
            bound, factors = self._product(norms)
            offset = bound
            for gradient, norm, factor in zip(gradients, norms, factors, strict=True):
                gradient.mul_(factor)
                offset = offset - factor * norm
            cast(Tensor, self.offset).copy_(offset)

    def _dual(self, index: int, weight: Tensor, out: Tensor) -> Tensor:
        """Write the weight's dual matrix to ``out`` and give the norm."""
        live = self._plan[1][index]
        if index in self._geometries:
            smooth = self.method != "power"
            # A transposed convolution has the norm that the convolution has between the dual spaces.
            side = dual(self.norm) if isinstance(live.node, ConvTranspose) else self.norm
            found, norm = conv_dual(weight, self._geometries[index], side, squarings=self.squarings, smooth=smooth)
            out.copy_(found)
            return norm
        if live.scalar:  # its largest entry, in every norm
            row = weight.reshape(1, -1)
            return dual_matrix(row, 1, out=out.view(1, -1))[1]
        if self.method != "power":
            return dual_matrix(weight, self.norm, squarings=self.squarings, out=out)[1]
        vector = cast(Tensor, getattr(self, f"vector_{index}"))
        u, v = power_step(weight, vector)
        vector.copy_(v)
        torch.outer(u, v, out=out)
        return estimate_by_dual(weight, out)

    def _product(self, norms: Sequence[Tensor]) -> tuple[Tensor, Sequence[Tensor]]:
        """The (log of the) trivial bound from the layers' norms, and its derivative in each."""
        order = {index: position for position, index in enumerate(self._plan[1], start=1)}

        def step(index: int, node: Node, inputs: list[Tensor]) -> Tensor:
            if index in order:
                jet = inputs[0] * norms[order[index] - 1]
                jet[order[index]] += inputs[0][0]
                return jet
            if index in self._factors:
                return inputs[0] * self._factors[index]
            return _propagate(node, inputs, self.norm)

        found = self._plan[0].fold(torch.eye(1, 1 + len(norms), device=norms[0].device)[0], step)
        bound, slopes = found[0], found[1:]
        if self.form == "log":
            bound = bound.clamp_min(torch.finfo(bound.dtype).tiny)
            return bound.log(), list((slopes / bound).unbind())
        return bound, list(slopes.unbind())

    def get_extra_state(self) -> Tensor:
        """The number of calls so far and whether a refresh waits, so that a resumed run refreshes at the same steps."""
        return torch.tensor([self.calls, int(self._pending)])

    def set_extra_state(self, state: Any) -> None:
        """Restore what :meth:`get_extra_state` gave."""
        self.calls, self._pending = int(state[0]), bool(state[1])

    def extra_repr(self) -> str:
        return f"norm={self.norm}, form={self.form}, method={self.method}, every={self.every}"


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _read_anew(network: nn.Module, reading: Reading) -> Graph:
    """The Graph of a program that was read before, with the tensors that the module has now."""
    reader = ProgramReader(network, reading.program, reading.graph.input_shape, tensor_of(network))
    return reader.read(reading.graph.name).graph


def _check_live(network: nn.Module, reading: Reading, layers: Mapping[int, LiveLayer]) -> None:
    """Change all parameters and buffers, and require that what is read live is what a fresh capture reads."""
    tensors = [t for t in (*network.parameters(), *network.buffers()) if t.is_floating_point()]
    if any(t.is_meta for t in tensors):
        return
    kept = [t.detach().clone() for t in tensors]
    generator = torch.Generator().manual_seed(20261125)
    try:
        for tensor in tensors:
            factor = 0.75 + 0.5 * torch.rand(tensor.shape, generator=generator)
            factor = factor.to(tensor.device, tensor.dtype)
            # `data`, so that a loss that was computed before can still be differentiated.
            tensor.data.copy_(torch.where(tensor.data == 0, 0.125 * factor, tensor.data * factor))
        fresh = read_module(network, reading.graph.input_shape, reading.graph.name, checked=False).graph
        check_live(layers, _read_anew(network, reading), fresh)
    finally:
        for tensor, value in zip(tensors, kept, strict=True):
            tensor.data.copy_(value)


def _geometry(node: Node, shape: tuple[int, ...]) -> Convolution | None:
    """Of a convolution, or of the one that a transposed one is the adjoint of."""
    if isinstance(node, ConvTranspose):
        return adjoint_geometry(node, shape)
    return geometry(node, shape) if isinstance(node, Conv) and not node.diagonal else None


def _full_precision(device: str) -> AbstractContextManager[Any]:
    # Some devices (meta) know no autocast, so there is nothing to switch off.
    return torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext()


_ALIVE: weakref.WeakValueDictionary[int, TrivialBoundPenalty] = weakref.WeakValueDictionary()


# To torch.compile the refresh is one opaque operation, since it depends on a counter in Python: traced, every call
# would be compiled anew.
@torch.library.custom_op("lipbridge::refresh", mutates_args=("states",))
def _refresh(weights: list[Tensor], states: list[Tensor], handle: int) -> None:
    penalty = _ALIVE[handle]
    if penalty._due():  # pyright: ignore[reportPrivateUsage]
        penalty.refresh(weights)
        # The states may be copies of the buffers: the compiler writes back what is in them.
        for state, buffer in zip(states, cast(Iterable[Tensor], penalty.buffers()), strict=True):
            if state is not buffer:
                state.copy_(buffer)


@cast(Any, _refresh).register_fake
def _(weights: list[Tensor], states: list[Tensor], handle: int) -> None:
    return None


# --- the trivial bound and its derivatives, one function a node type --------------------------------------------------
# A jet is a tensor (1 + L,): a constant and its derivative in each of the L layers' norms. (No autograd: it does not
# work inside the one operation that torch.compile sees.)


_propagate = Rule[[list[Tensor], Norm], Tensor]("live constant", "Its Lipschitz constant is not known yet.")


_propagate.without(
    *(Dense, Conv, ConvTranspose, Elementwise),
    reason="it multiplies by the norm of its own weights or slopes, which may be live",
)
_propagate.without(
    *(Gather, Reshape, MaxPool, GroupSort, Normalize, Softmax),
    reason="it has no weights: it multiplies by a number that is taken once",
)


@_propagate.of(Add)
def _(node: Add, jets: list[Tensor], norm: Norm) -> Tensor:
    return torch.stack(jets).sum(0)


@_propagate.of(Concat)
def _(node: Concat, jets: list[Tensor], norm: Norm) -> Tensor:
    stacked = torch.stack(jets)
    values = stacked[:, 0]
    if norm == 1:
        return stacked.sum(0)
    if norm == "inf":
        return stacked.index_select(0, values.argmax().view(1))[0]
    length = vector_norm(values)
    jet = (values @ stacked) / length.clamp_min(torch.finfo(length.dtype).tiny)
    jet[0] = length
    return jet
