"""Networks of the field that stand beside bound-trained ones in the studies: called with (input_shape, classes)."""

from __future__ import annotations

import math

from torch import nn
from torch.nn.utils import parametrizations

from lipbridge.activations.modules import Abs

#: Hidden widths, those of our recipe for images.
WIDTHS = (256, 256)


def spectral_norm_mlp(input_shape: tuple[int, ...], classes: int) -> nn.Module:
    """Each weight divided by its largest singular value, which torch's ``spectral_norm`` estimates as it trains."""
    return _chain(input_shape, classes, spectral=True)


def orthogonal_mlp(input_shape: tuple[int, ...], classes: int) -> nn.Module:
    """Orthonormal rows or columns of every weight, by torch's ``orthogonal`` (its Cayley map, the fastest)."""
    return _chain(input_shape, classes, spectral=False)


def _chain(input_shape: tuple[int, ...], classes: int, *, spectral: bool) -> nn.Module:
    sizes = [math.prod(input_shape), *WIDTHS, classes]
    layers: list[nn.Module] = [nn.Flatten()]
    for index in range(len(sizes) - 1):
        layer = nn.Linear(sizes[index], sizes[index + 1], bias=False)
        nn.init.orthogonal_(layer.weight)
        if spectral:
            parametrizations.spectral_norm(layer)
        else:
            parametrizations.orthogonal(layer, orthogonal_map="cayley")
        layers += [layer, Abs()]
    return nn.Sequential(*layers[:-1])
