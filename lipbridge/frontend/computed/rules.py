"""What torch's operations on constants round: a value and a bound of its error, by the name of the operation.

A sum is exact where its error, by Knuth's error-free transformation, is zero; so is a product by Dekker's. Dot products
and sums of many terms are exact where all partial sums are multiples of one power of two below 2^53 of it. All others
obey the bounds of :mod:`lipbridge.rounding.uncertain`. Functions of the libraries are trusted to a few units in the
last place.
"""

from __future__ import annotations

from typing import Any, cast

import torch

from lipbridge.frontend.computed.arithmetic import (
    FLUSHED,
    Rule,
    add,
    addmm,
    div,
    dot,
    mean,
    mul,
    neg,
    prod,
    reciprocal,
    rsub,
    sqrt,
    sub,
    total,
)
from lipbridge.frontend.computed.entrywise import (
    absolute,
    addcdiv,
    addcmul,
    amax,
    amin,
    cast_of,
    exp,
    log,
    power,
    rsqrt,
    smooth,
    soft_maximum,
    squared,
    steady,
    where,
)
from lipbridge.frontend.computed.lengths import deviation, length_of, norm, variance, weight_norm, with_mean

RULES: dict[str, Rule] = {
    "add": add,
    "sub": sub,
    "rsub": rsub,
    "neg": neg,
    "mul": mul,
    "div": div,
    "reciprocal": reciprocal,
    "mm": dot,
    "bmm": dot,
    "mv": dot,
    "dot": dot,
    "matmul": dot,
    "addmm": addmm,
    "addmv": addmm,
    "baddbmm": addmm,
    "sum": total,
    "mean": mean,
    "prod": prod,
    "sqrt": sqrt,
    "rsqrt": rsqrt,
    "square": squared,
    "pow": power,
    "linalg_vector_norm": length_of,
    "norm": norm,
    "var": variance,
    "std": deviation,
    "var_mean": with_mean(variance),
    "std_mean": with_mean(deviation),
    "_weight_norm_interface": weight_norm,
    "addcmul": addcmul,
    "addcdiv": addcdiv,
    "abs": absolute,
    "relu": steady(torch.relu),
    "clamp": steady(torch.clamp),
    "clamp_min": steady(cast(Any, torch).clamp_min),
    "clamp_max": steady(cast(Any, torch).clamp_max),
    "maximum": steady(torch.maximum),
    "minimum": steady(torch.minimum),
    "amax": amax,
    "amin": amin,
    "exp": exp,
    "log": log,
    "logaddexp": soft_maximum,
    "tanh": smooth(torch.tanh, 1.0),
    "sigmoid": smooth(torch.sigmoid, 0.25, least=FLUSHED),
    "sin": smooth(torch.sin, 1.0),
    "cos": smooth(torch.cos, 1.0),
    "atan": smooth(torch.atan, 1.0),
    "erf": smooth(torch.erf, 1.13),
    "where": where,
    "_to_copy": cast_of,
}


__all__ = ["RULES"]
