"""A proved operator norm of a convolution."""

from __future__ import annotations

from torch import Tensor

from lipbridge.norms.conv_geometry import Convolution
from lipbridge.rigor import proved_operator_norm
from lipbridge.vocabulary import Norm


def proved_conv_norm(weight: Tensor, geometry: Convolution, p: Norm = 2, q: Norm | None = None) -> float:
    """A double never below the operator norm; first version: by the matrix."""
    return proved_operator_norm(geometry.matrix(weight.detach().double()), p, q)
