"""The penalty: its value and gradient, its state, and everybody's training loops."""

from __future__ import annotations

import copy
import json
import math
import subprocess
import sys

import pytest
import torch
from torch import nn

import lipbridge
from lipbridge import TrivialBoundPenalty
from lipbridge.errors import InvalidArgument, UnknownName, UnsupportedOperation
from lipbridge.vocabulary import NORMS


def weights(module: nn.Module) -> list[torch.Tensor]:
    return [layer.weight for layer in module.modules() if isinstance(layer, nn.Linear)]


def reference(module: nn.Module, norm, smoothed: bool) -> torch.Tensor:
    """The product of (smoothed) norms, by SVD and autograd."""
    product = torch.ones((), dtype=torch.float64)
    for W in weights(module):
        W = W.double()
        if not smoothed:
            product = product * lipbridge.operator_norm(W, norm)
        elif norm == 2:
            product = product * torch.linalg.svdvals(W).pow(130).sum() ** (1 / 130)
        else:
            product = product * W.abs().sum(0 if norm == 1 else 1).pow(32).sum() ** (1 / 32)
    return product


@pytest.mark.parametrize("form", ["linear", "log"])
@pytest.mark.parametrize(("norm", "method"), [(1, "gram"), (2, "gram"), (2, "power"), ("inf", "gram")])
def test_value_and_gradient(norm, method: str, form: str) -> None:
    torch.manual_seed(0)
    module = lipbridge.mlp([12, 9, 8, 4], "abs", bias=False)
    penalty = TrivialBoundPenalty(module, norm, form, method=method, squarings=6)
    value = penalty()
    for _ in range(400 if method == "power" else 0):
        value = penalty()
    value.backward()
    found = [W.grad.clone() for W in weights(module)]
    module.zero_grad()
    expected = reference(module, norm, smoothed=method == "gram")
    expected = expected.log() if form == "log" else expected
    expected.backward()
    assert float(value.detach()) == pytest.approx(float(expected.detach()), rel=1e-4)
    for gradient, W in zip(found, weights(module), strict=True):
        torch.testing.assert_close(gradient, W.grad, rtol=2e-3, atol=2e-3 * float(W.grad.abs().max()))


@pytest.mark.parametrize("norm", NORMS)
def test_training_presses_the_bound_down_and_the_estimate_follows(norm) -> None:
    bounds: dict[float, float] = {}
    for weight in (0.0, 0.1):
        torch.manual_seed(0)
        module = lipbridge.mlp([20, 16, 16, 5], "crelu")
        penalty = TrivialBoundPenalty(module, norm, every=2)
        optimizer = torch.optim.Adam(module.parameters(), 1e-2)
        x, y = torch.randn(64, 20), torch.randint(0, 5, (64,))
        for _ in range(150):
            optimizer.zero_grad()
            (nn.functional.cross_entropy(module(x), y) + weight * penalty()).backward()
            optimizer.step()
        bounds[weight] = lipbridge.trivial_bound(module, norm).value
        # The penalty is on smoothed norms: above the bound by at most (20^(1/32))^3 for three layers of up to 20 sums.
        assert bounds[weight] * 0.98 <= float(penalty().detach()) <= bounds[weight] * 1.33
    assert bounds[0.1] < 0.5 * bounds[0.0]


def test_activation_constants_and_any_graph_count() -> None:
    module = lipbridge.mlp([4, 5, 3], "silu")
    plain = TrivialBoundPenalty(nn.Sequential(module[0], nn.ReLU(), module[2]))
    assert float(TrivialBoundPenalty(module)()) / float(plain()) == pytest.approx(1.0998393, rel=1e-5)


@pytest.mark.parametrize("norm", NORMS)
def test_jets_of_joined_layers_are_derivatives(norm) -> None:
    """Concat and Add of three dense layers: the penalty's slopes against finite differences."""
    from lipbridge.graph.graph import Graph
    from lipbridge.graph.nodes import Add, Concat, Dense, Input

    penalty = TrivialBoundPenalty(lipbridge.mlp([3, 3, 3, 3, 3]), norm)
    shapes = ((), (3,)), ((0,), (3,)), ((0,), (3,)), ((1, 2), (6,)), ((3,), (3,)), ((0,), (3,)), ((4, 5), (3,))
    kinds = (Input, Dense, Dense, Concat, Dense, Dense, Add)
    weight = torch.ones(3, 3)
    nodes = [
        kind("n", inputs, shape, weight) if kind is Dense else kind("n", inputs, shape)
        for kind, (inputs, shape) in zip(kinds, shapes, strict=True)
    ]
    penalty._plan, penalty._factors = (Graph(tuple(nodes)), dict.fromkeys((1, 2, 4, 5))), {}
    norms = [torch.tensor(value, dtype=torch.float64) for value in (1.3, 0.7, 2.1, 0.4)]
    value, slopes = penalty._product([x.float() for x in norms])
    a, b, c, d = (float(x) for x in norms)
    joined = {1: a + b, 2: math.hypot(a, b), "inf": max(a, b)}[norm]
    assert float(value) == pytest.approx(c * joined + d, rel=1e-6)
    along = {1: (1, 1), 2: (a / joined, b / joined), "inf": (1, 0)}[norm]
    assert [float(s) for s in slopes] == pytest.approx([c * along[0], c * along[1], joined, 1.0], rel=1e-6)


def test_adding_the_gradient_is_the_same_step() -> None:
    torch.manual_seed(0)
    module = lipbridge.mlp([6, 5, 3], "crelu")
    penalties = [TrivialBoundPenalty(module, every=3) for _ in range(2)]
    assert penalties[0].direct
    x = torch.randn(4, 6)
    for _ in range(5):
        module.zero_grad()
        (module(x).square().mean() + 0.3 * penalties[0]()).backward()
        expected = [p.grad.clone() for p in module.parameters()]
        module.zero_grad()
        module(x).square().mean().backward()
        penalties[1].add_gradient(0.3)
        for gradient, p in zip(expected, module.parameters(), strict=True):
            torch.testing.assert_close(p.grad, gradient)
        with torch.no_grad():
            module[0].weight.mul_(1.1)


def test_a_stride_acts_seldom_with_the_same_force_on_average() -> None:
    module = lipbridge.mlp([6, 5, 3], "abs")
    steady, strided = TrivialBoundPenalty(module, every=3), TrivialBoundPenalty(module, every=3)
    total = {}
    for name, penalty, stride in (("steady", steady, 1), ("strided", strided, 2)):
        module.zero_grad()
        for p in module.parameters():
            p.grad = torch.zeros_like(p)
        for _ in range(6):
            penalty.add_gradient(0.5, stride)
        total[name] = [p.grad.clone() for p in module.parameters()]
    for a, b in zip(total["steady"], total["strided"], strict=True):
        torch.testing.assert_close(a, b)  # the weights did not move, so every refresh gives the same gradient


def test_a_refresh_that_waits_is_saved() -> None:
    module = lipbridge.mlp([6, 5, 3], "abs")
    penalty, other = TrivialBoundPenalty(module, every=3), TrivialBoundPenalty(module, every=3)
    for p in module.parameters():
        p.grad = torch.zeros_like(p)
    for _ in range(4):  # the call with number 3 is due, but has no effect at stride 2
        penalty.add_gradient(1.0, 2)
    other.load_state_dict(penalty.state_dict())
    with torch.no_grad():
        module[0].weight.mul_(3.0)
    for p in (penalty, other):
        p.add_gradient(1.0, 2)
    assert torch.equal(penalty.gradient_1, other.gradient_1)
    assert penalty.bound().value == pytest.approx(float(other().detach()), rel=0.1)


def test_adding_the_gradient_to_a_transposed_weight() -> None:
    class Transposed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.randn(4, 3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x @ self.w

    module = Transposed()
    penalty, twin = (TrivialBoundPenalty(module, input_shape=(4,)) for _ in range(2))
    penalty().backward()
    expected = module.w.grad.clone()
    assert penalty.direct
    module.w.grad = torch.zeros(4, 3)
    twin.add_gradient(1.0)
    torch.testing.assert_close(module.w.grad, expected)
    module.w.grad = None
    with pytest.raises(InvalidArgument, match="with a gradient"):
        twin.add_gradient(1.0)


def test_a_parametrised_weight_has_no_direct_gradient() -> None:
    normed = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)), nn.ReLU(), nn.Linear(4, 2))
    assert not TrivialBoundPenalty(normed).direct


def test_stale_gradients_are_refreshed_every_few_calls() -> None:
    module = lipbridge.mlp([6, 5, 3], "abs")
    penalty = TrivialBoundPenalty(module, every=3)
    penalty()
    before = penalty.gradient_1.clone()
    with torch.no_grad():
        module[0].weight.normal_()
    penalty(), penalty()
    assert torch.equal(penalty.gradient_1, before)
    penalty()
    assert not torch.equal(penalty.gradient_1, before)


def test_state_is_saved_and_the_module_is_not() -> None:
    module = lipbridge.mlp([6, 5, 3], "abs")
    penalty = TrivialBoundPenalty(module, method="power")
    for _ in range(7):
        penalty()
    state = penalty.state_dict()
    assert not any("weight" in name for name in state)
    other = TrivialBoundPenalty(module, method="power")
    other.load_state_dict(state)
    assert other.calls == 7
    assert float(other()) == float(penalty())
    assert list(penalty.parameters()) == []


def test_weights_are_read_live() -> None:
    module = lipbridge.mlp([6, 5, 3], "abs")
    penalty = TrivialBoundPenalty(module, every=1)
    before = float(penalty())
    with torch.no_grad():
        module[0].weight.mul_(2.0)
    assert float(penalty()) == pytest.approx(2 * before, rel=1e-5)
    assert penalty.bound().value == lipbridge.trivial_bound(module).value


def test_shared_transposed_and_parametrised_weights() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.randn(4, 4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (x @ self.w).abs() @ self.w.T

    module = Tied()
    penalty = TrivialBoundPenalty(module, input_shape=(4,))
    value = penalty()
    assert float(value) >= float(torch.linalg.matrix_norm(module.w.detach(), 2)) ** 2 * (1 - 1e-5)
    value.backward()
    assert float(module.w.grad.abs().sum()) > 0

    normed = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)), nn.ReLU(), nn.Linear(4, 2))
    TrivialBoundPenalty(normed)().backward()
    assert normed[0].parametrizations.weight.original0.grad is not None


@pytest.mark.parametrize("method", ["gram", "power"])
def test_torch_compile_in_one_graph(method: str) -> None:
    from torch._dynamo.testing import CompileCounterWithBackend

    torch.manual_seed(0)
    module = lipbridge.mlp([6, 5, 3], "abs")
    twin = copy.deepcopy(module)
    penalties = [TrivialBoundPenalty(m, method=method, every=3) for m in (module, twin)]
    counter = CompileCounterWithBackend("aot_eager")

    def step(m: nn.Module, p: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return m(x).square().mean() + 0.1 * p()

    compiled = torch.compile(lambda x: step(module, penalties[0], x), backend=counter, fullgraph=True)
    optimizers = [torch.optim.SGD(m.parameters(), 0.05) for m in (module, twin)]
    for k in range(10):
        x = torch.randn(8, 6, generator=torch.Generator().manual_seed(k))
        losses = compiled(x), step(twin, penalties[1], x)
        for loss, optimizer in zip(losses, optimizers, strict=True):
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        assert float(losses[0]) == pytest.approx(float(losses[1]), rel=1e-5)
    assert counter.frame_count == 1  # no graph break, no recompilation as calls are counted
    assert penalties[0].calls == 10


def test_autocast_does_not_lower_its_precision() -> None:
    module = lipbridge.mlp([32, 32, 4], "abs")
    exact = float(TrivialBoundPenalty(module)().detach())
    with torch.autocast("cpu", torch.bfloat16):
        value = TrivialBoundPenalty(module)()
        assert module(torch.randn(2, 32)).dtype is torch.bfloat16
    assert value.dtype is torch.float32
    assert float(value) == exact


def test_half_precision_weights() -> None:
    module = lipbridge.mlp([8, 8, 4], "abs").to(torch.bfloat16)
    value = TrivialBoundPenalty(module)()
    value.backward()
    assert module[0].weight.grad.dtype is torch.bfloat16
    assert float(value) == pytest.approx(lipbridge.trivial_bound(module).value, rel=0.05)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("method", ["gram", "power"])
def test_no_host_synchronisation_on_the_meta_device(norm, method: str) -> None:
    with torch.device("meta"):
        module = lipbridge.mlp([6, 5, 3], "crelu")
    penalty = TrivialBoundPenalty(module, norm, method=method)
    for _ in range(9):
        penalty().backward()
    assert module[0].weight.grad.device.type == "meta"


def test_zero_weights_give_zero_and_no_nan() -> None:
    module = lipbridge.mlp([6, 5, 3], "abs", bias=False)
    for W in weights(module):
        nn.init.zeros_(W)
    for form in ("linear", "log"):
        value = TrivialBoundPenalty(module, form=form)()
        value.backward()
        assert not math.isnan(float(value))
        assert all(bool(torch.isfinite(W.grad).all()) for W in weights(module))


def test_lightning_takes_it_in_two_lines() -> None:
    lightning = pytest.importorskip("lightning", reason="Lightning is not installed (an optional check)")

    class Classifier(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = lipbridge.mlp([6, 5, 3], "abs")
            self.penalty = TrivialBoundPenalty(self.net)

        def training_step(self, batch, _index: int) -> torch.Tensor:
            x, y = batch
            return nn.functional.cross_entropy(self.net(x), y) + 0.03 * self.penalty()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.Adam(self.parameters(), 1e-2)

    data = torch.utils.data.TensorDataset(torch.randn(64, 6), torch.randint(0, 3, (64,)))
    model = Classifier()
    before = lipbridge.trivial_bound(model.net).value
    trainer = lightning.Trainer(
        max_epochs=20, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, accelerator="cpu",
    )  # fmt: skip
    trainer.fit(model, torch.utils.data.DataLoader(data, batch_size=16))
    assert model.penalty.calls == 80
    assert lipbridge.trivial_bound(model.net).value != before


def test_bad_arguments() -> None:
    module = lipbridge.mlp([3, 4, 2])
    with pytest.raises(UnknownName, match="linear, log"):
        TrivialBoundPenalty(module, form="cubic")
    with pytest.raises(UnknownName, match="gram, power"):
        TrivialBoundPenalty(module, method="guess")
    with pytest.raises(InvalidArgument, match="squarings"):
        TrivialBoundPenalty(module, squarings=0)
    with pytest.raises(InvalidArgument, match="every"):
        TrivialBoundPenalty(module, every=0)
    with pytest.raises(InvalidArgument, match="1, 2 or inf"):
        TrivialBoundPenalty(module, 3)
    with pytest.raises(UnsupportedOperation, match="softmax"):
        TrivialBoundPenalty(nn.Sequential(nn.Linear(3, 3), nn.Softmax(0)))


DDP = """
import json, os, sys, torch
from torch import nn
import lipbridge

torch.set_num_threads(1)
torch.distributed.init_process_group("gloo")
rank = torch.distributed.get_rank()
torch.manual_seed(0)
module = lipbridge.mlp([6, 5, 3], "abs")
model = nn.parallel.DistributedDataParallel(module)
penalty = lipbridge.TrivialBoundPenalty(module, every=3)
optimizer = torch.optim.SGD(module.parameters(), 0.05)
x, y = torch.randn(8, 6), torch.randint(0, 3, (8,))
for _ in range(10):
    part = slice(4 * rank, 4 * rank + 4)
    loss = nn.functional.cross_entropy(model(x[part]), y[part]) + 0.1 * penalty()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
with open(f"{sys.argv[1]}/{rank}.json", "w") as file:
    json.dump([p.tolist() for p in module.parameters()], file)
torch.distributed.barrier()
torch.distributed.destroy_process_group()
os._exit(0)  # gloo's threads and the interpreter's end do not always agree
"""


def test_in_a_plain_distributed_loop(tmp_path) -> None:
    """Two gloo processes with the penalty in the loss end with equal weights: those of one process."""
    script = tmp_path / "loop.py"
    script.write_text(DDP)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--local-addr=127.0.0.1"]
    done = subprocess.run([sys.executable, *launcher, str(script), str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert first == second
    torch.manual_seed(0)
    module = lipbridge.mlp([6, 5, 3], "abs")
    penalty = TrivialBoundPenalty(module, every=3)
    optimizer = torch.optim.SGD(module.parameters(), 0.05)
    x, y = torch.randn(8, 6), torch.randint(0, 3, (8,))
    for _ in range(10):
        optimizer.zero_grad()
        (nn.functional.cross_entropy(module(x), y) + 0.1 * penalty()).backward()
        optimizer.step()
    for found, parameter in zip(first, module.parameters(), strict=True):
        torch.testing.assert_close(torch.tensor(found), parameter.detach(), rtol=1e-4, atol=1e-5)
