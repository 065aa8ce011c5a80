"""What the tensors of a module are: lazy, sparse, quantized, expanded to the input, or a choice of what passes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import lipbridge
from lipbridge.errors import InvalidArgument, UnsupportedOperation


class _Product(nn.Module):
    def __init__(self, matrix: Tensor) -> None:
        super().__init__()
        self.register_buffer("matrix", matrix)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.matrix


class _SparseInForward(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x @ torch.tensor([[2.0, 0.0], [0.0, -3.0]]).to_sparse()


class _Expanded(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.tensor([1.0, 2.0]))
        self.f = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.f(x + self.shift.expand_as(x))


class _Masked(nn.Module):
    """Entries pass where a tensor of the module says so."""

    def __init__(self, *, trained: bool) -> None:
        super().__init__()
        mask = torch.tensor([0.0, 1.0, 0.0])
        self.f, self.trained = nn.Linear(3, 3), trained
        self.mask = nn.Parameter(mask) if trained else nn.Parameter(mask > 0.5, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.f(x.masked_fill(self.mask > 0.5 if self.trained else self.mask, 0.0))


def test_lazy_layers_are_refused_until_they_have_run() -> None:
    net = nn.Sequential(nn.LazyLinear(3), nn.ReLU(), nn.LazyLinear(2))
    for make in (lipbridge.capture, lambda m, s: lipbridge.TrivialBoundPenalty(m, input_shape=s)):
        with pytest.raises(InvalidArgument, match="run once"):
            make(net, (4,))
    net(torch.zeros(1, 4))
    assert lipbridge.capture(net, (4,)).output_shape == (2,)


@pytest.mark.filterwarnings("ignore:Sparse CSR", "ignore:torch.quantize_per_tensor")
def test_stored_tensors_that_are_not_dense_are_refused_by_name() -> None:
    for tensor, way in (
        (torch.eye(3).to_sparse(), "to_dense"),
        (torch.eye(4).to_sparse_csr(), "to_dense"),
        (torch.quantize_per_tensor(torch.eye(3), 0.1, 0, torch.qint8), "dequantize"),
    ):
        with pytest.raises(UnsupportedOperation, match=rf"Store matrix .* {way}"):
            lipbridge.capture(_Product(tensor), (len(tensor),))


def test_a_sparse_constant_is_the_matrix_that_it_stands_for() -> None:
    assert 3.0 <= lipbridge.trivial_bound(_SparseInForward(), input_shape=(2,)).value < 3.0 + 1e-12


def test_a_constant_is_expanded_like_the_input() -> None:
    module = _Expanded().double()
    x = torch.randn(5, 2, dtype=torch.float64)
    assert torch.allclose(lipbridge.capture(module, (2,))(x), module(x), rtol=1e-14, atol=1e-14)


def test_a_penalty_refuses_a_choice_that_weights_make() -> None:
    assert lipbridge.capture(_Masked(trained=True), (3,)).output_shape == (3,)
    with pytest.raises(UnsupportedOperation, match=r"masked_fill.*depends on the values of weights"):
        lipbridge.TrivialBoundPenalty(_Masked(trained=True), input_shape=(3,))
    penalty = lipbridge.TrivialBoundPenalty(_Masked(trained=False), input_shape=(3,))
    assert float(penalty().detach()) > 0.0
