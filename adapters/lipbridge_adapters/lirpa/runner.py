"""Running the tool on one network: bounds of its outputs over balls, chunk after chunk."""

from __future__ import annotations

import time
from collections.abc import Iterator

import torch
from torch import Tensor

from lipbridge.errors import NumericalFailure
from lipbridge.problem.verifier import Budget
from lipbridge.vocabulary import Norm, exponent
from lipbridge_adapters.lirpa import custom, shim
from lipbridge_adapters.lirpa.network import Network

_NAMES = {"IBP": "IBP", "CROWN-IBP": "CROWN-IBP", "CROWN": "CROWN", "alpha-CROWN": "CROWN-Optimized"}


#: Every shortcut of the tool that replaces a computed bound by a cheaper one. With the first two on, release 0.3 as
#: installed is unsound where two functions read one pre-activation: intervals reach the wrong node, as the shim mends.
SOUND_OPTIONS: dict[str, object] = {
    "sparse_intermediate_bounds": False,
    "sparse_intermediate_bounds_with_ibp": False,
    "sparse_conv_intermediate_bounds": False,
    "sparse_features_alpha": False,
    "sparse_spec_alpha": False,
    "conv_mode": "matrix",
    "verbosity": 0,
}


class Runner:
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
                custom_ops=custom.operators(self.tool),
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
