"""One step of training: the optimiser, the loss with the penalty, and images moved by some pixels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lipbridge.training.config import TrainingConfig
from lipbridge.training.penalty import TrivialBoundPenalty


def make_optimizer(module: nn.Module, config: TrainingConfig) -> torch.optim.Optimizer:
    """The optimiser that ``config`` names, over the module's parameters."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    fused = all(p.device.type in ("cpu", "cuda") for p in parameters)
    rate, decay = config.learning_rate, config.weight_decay
    if config.optimizer == "sgd":
        return torch.optim.SGD(parameters, rate, momentum=config.momentum[0], weight_decay=decay, fused=fused or None)
    kind = torch.optim.Adam if config.optimizer == "adam" else torch.optim.AdamW
    return kind(parameters, rate, betas=config.momentum, weight_decay=decay, fused=fused or None)


def training_step(
    model: Callable[[Tensor], Tensor],
    penalty: TrivialBoundPenalty | None,
    optimizer: torch.optim.Optimizer,
    inputs: Tensor,
    labels: Tensor,
    config: TrainingConfig,
) -> tuple[Tensor, Tensor]:
    """One step: forward, cross entropy plus penalty, backward, update. Nothing in it waits for the device.

    Args:
        model: ``(batch, d) -> (batch, classes)``.
        penalty: the penalty, or None.
        inputs: ``(batch, d)`` on the model's device.
        labels: ``(batch,)`` int64 there.

    Returns:
        The cross entropy (without penalty) and the number of right answers, as tensors without axes, detached.
    """
    logits = model(inputs)
    scaled = logits if config.logit_scale == 1 else config.logit_scale * logits
    entropy = F.cross_entropy(scaled, labels, label_smoothing=config.label_smoothing)
    direct = penalty is not None and penalty.direct
    loss = entropy if penalty is None or direct else entropy + config.penalty * penalty()
    optimizer.zero_grad(set_to_none=True)
    cast(Any, loss).backward()
    if penalty is not None and direct:
        penalty.add_gradient(config.penalty, config.stride)
    optimizer.step()
    return entropy.detach(), (logits.detach().argmax(1) == labels).sum()


def shifted(inputs: Tensor, shape: tuple[int, ...], pixels: int, generator: torch.Generator | None) -> Tensor:
    """Move each image by its own random whole number of pixels along both axes, filling with zeros.

    Args:
        inputs: ``(batch, d)`` flattened images of ``shape`` (channels, height, width).
        pixels: the largest shift.
        generator: on the device of ``inputs``.
    """
    batch, (channels, height, width) = len(inputs), shape
    padded = F.pad(inputs.view(batch, channels, height, width), (pixels,) * 4)
    offsets = torch.randint(0, 2 * pixels + 1, (2, batch, 1), generator=generator, device=inputs.device)
    rows = offsets[0] + torch.arange(height, device=inputs.device)
    columns = offsets[1] + torch.arange(width, device=inputs.device)
    index = torch.arange(batch, device=inputs.device)[:, None, None]
    # Advanced indices around a slice put the channels last.
    moved = padded[index, :, rows[:, :, None], columns[:, None, :]]
    return moved.permute(0, 3, 1, 2).reshape(batch, -1)
