"""The training penalty: the trivial bound of a module as a differentiable scalar."""

import weakref
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import singledispatch
from itertools import count
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor, nn

from lipbridge.capture import capture
from lipbridge.errors import InvalidArgument, UnknownName, UnsupportedOperation
from lipbridge.graph import Add, Concat, Dense, Elementwise, Input, Node, Reshape
from lipbridge.linalg import vector_norm
from lipbridge.norms.estimate import dual_matrix, estimate_by_dual, estimate_by_power
from lipbridge.norms.power import initial_vector, power_step
from lipbridge.vocabulary import Norm, as_norm

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
        module: what :func:`lipbridge.capture` can read; dense weights must be tensors of the module.
        norm: 1, 2 or "inf".
        form: ``linear`` for the bound itself, ``log`` for its logarithm.
        method: for l_2. ``gram`` penalises the Schatten norm of order 130 by Gram iteration, refreshed every
            ``every`` calls: within some per cent above the spectral norm, and it flattens the whole top of the
            spectrum, which makes the bound tight. ``power`` penalises the largest singular value alone, by one warm
            power step in every call. (In l_1 and l_inf the penalty is on the l_32 norm of column or row sums.)
        every: calls between two refreshes of ``gram``; in between the last gradient of the norm is used.
        input_shape: as for :func:`lipbridge.capture`.

    Raises:
        UnsupportedOperation: for a layer outside the Graph's nodes, or a weight that is no tensor of the module.

    Source: Kuang et al., arXiv 2603.28113 (the trivial bound in the loss); dual states are ours.
    Law: the gradient is that of the product of the layers' (Schatten) norms.
    """

    def __init__(
        self,
        module: nn.Module,
        norm: Norm | str = 2,
        form: Form = "linear",
        *,
        method: Method = "gram",
        every: int = 10,
        input_shape: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        if form not in get_args(Form):
            raise UnknownName("penalty form", form, get_args(Form))
        if method not in get_args(Method):
            raise UnknownName("penalty method", method, get_args(Method))
        if every < 1:
            raise InvalidArgument("every", "be at least 1", every)
        self.norm: Norm = as_norm(norm)
        self.form, self.every = form, every
        self.method = method if self.norm == 2 else "extreme"
        graph = capture(module, input_shape)
        # Held in a plain tuple: the module must not become a submodule, whose weights state_dict would save twice.
        readers = {
            index: _live_weight(module, node) for index, node in enumerate(graph.nodes) if isinstance(node, Dense)
        }
        self._plan = (graph.nodes, readers)
        self._dense = tuple(readers)
        if not readers:
            raise InvalidArgument("module", "have a layer with weights", type(module).__name__)
        for index, node in enumerate(graph.nodes):
            if isinstance(node, Dense):
                self.register_buffer(f"state_{index}", self._initial_state(node))
        self.calls = 0
        self._handle = next(_HANDLES)
        _ALIVE[self._handle] = self

    def _initial_state(self, node: Dense) -> Tensor:
        device = node.weight.device
        if self.method == "power":
            return initial_vector(node.weight.shape[1], device)
        return torch.zeros(node.weight.shape, device=device)

    def forward(self) -> Tensor:
        """The penalty as a float32 tensor without axes, on the device of the weights."""
        nodes, readers = self._plan
        states = [cast(Tensor, getattr(self, f"state_{index}")) for index in self._dense]
        with _full_precision(states[0].device.type):
            weights = [readers[index]().to(state.dtype) for index, state in zip(self._dense, states, strict=True)]
            if torch.compiler.is_compiling():
                torch.ops.lipbridge.refresh([weight.detach() for weight in weights], states, self._handle)
            else:
                self.refresh(weights, states)
            estimate = estimate_by_power if self.method == "power" else estimate_by_dual
            norms = dict(zip(self._dense, map(estimate, weights, states), strict=True))
            found: list[Tensor] = []
            for index, node in enumerate(nodes):
                found.append(_propagate(node, [found[i] for i in node.inputs], norms.get(index), self))
        bound = found[-1]
        return bound if self.form == "linear" else bound.clamp_min(torch.finfo(bound.dtype).tiny).log()

    @torch.no_grad()
    def refresh(self, weights: Sequence[Tensor], states: Sequence[Tensor]) -> None:
        """Count a call and bring the states up to date with the weights, if it is their turn."""
        due = self.method != "gram" or self.calls % self.every == 0
        self.calls += 1
        if due:
            for weight, state in zip(weights, states, strict=True):
                if self.method == "power":
                    state.copy_(power_step(weight, state)[1])
                else:
                    state.copy_(dual_matrix(weight, self.norm))

    def get_extra_state(self) -> Tensor:
        """The number of calls so far, so that a resumed run refreshes at the same steps."""
        return torch.tensor(self.calls)

    def set_extra_state(self, state: Any) -> None:
        """Restore the number of calls."""
        self.calls = int(state)

    def extra_repr(self) -> str:
        return f"norm={self.norm}, form={self.form}, method={self.method}, every={self.every}"


def _full_precision(device: str) -> AbstractContextManager[Any]:
    # Some devices (meta) know no autocast, so there is nothing to switch off.
    return torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext()


_ALIVE: weakref.WeakValueDictionary[int, TrivialBoundPenalty] = weakref.WeakValueDictionary()


# To torch.compile the refresh is one opaque operation, since it depends on a counter in Python: traced, every call
# would be compiled anew.
@torch.library.custom_op("lipbridge::refresh", mutates_args=("states",))
def _refresh(weights: list[Tensor], states: list[Tensor], handle: int) -> None:
    _ALIVE[handle].refresh(weights, states)


@cast(Any, _refresh).register_fake
def _(weights: list[Tensor], states: list[Tensor], handle: int) -> None:
    return None


def _live_weight(module: nn.Module, node: Dense) -> Callable[[], Tensor]:
    if node.parameter is None:
        raise UnsupportedOperation(node.name, "dense", "Its weight is computed on the way; penalise the parameters.")
    path, _, name = node.parameter.rpartition(".")
    owner = module.get_submodule(path)
    transposed = node.transposed

    def weight() -> Tensor:
        value = cast(Tensor, getattr(owner, name))
        return value.T if transposed else value

    return weight


# --- the trivial bound with live norms, one function a node type ----------------------------------------------------


@singledispatch
def _propagate(node: Node, inputs: list[Tensor], norm: Tensor | None, penalty: TrivialBoundPenalty) -> Tensor:
    raise UnsupportedOperation(node.name, type(node).__name__, "Its Lipschitz constant is not known yet.")


@_propagate.register
def _(node: Input, inputs: list[Tensor], norm: Tensor | None, penalty: TrivialBoundPenalty) -> Tensor:
    state = next(penalty.buffers())
    return torch.ones((), dtype=state.dtype, device=state.device)


@_propagate.register
def _(node: Dense, inputs: list[Tensor], norm: Tensor | None, penalty: TrivialBoundPenalty) -> Tensor:
    assert norm is not None
    return inputs[0] * norm


@_propagate.register
def _(node: Elementwise, inputs: list[Tensor], norm: Tensor | None, penalty: TrivialBoundPenalty) -> Tensor:
    constant = node.activation.lipschitz[penalty.norm]
    return inputs[0] if constant == 1.0 else inputs[0] * constant


@_propagate.register
def _(node: Reshape, inputs: list[Tensor], norm: Tensor | None, penalty: TrivialBoundPenalty) -> Tensor:
    return inputs[0]


@_propagate.register
def _(node: Concat, inputs: list[Tensor], norm: Tensor | None, penalty: TrivialBoundPenalty) -> Tensor:
    return vector_norm(torch.stack(inputs), penalty.norm)


@_propagate.register
def _(node: Add, inputs: list[Tensor], norm: Tensor | None, penalty: TrivialBoundPenalty) -> Tensor:
    return torch.stack(inputs).sum()
