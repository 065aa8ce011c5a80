"""Normalisation, softmax, and the roots of RMSNorm written out."""

from __future__ import annotations

from torch import Tensor

from lipbridge.frontend import moments, normalisation
from lipbridge.frontend.aten.registry import Arguments, axis_of, handles, plain_name
from lipbridge.frontend.builder import Curve, GraphBuilder
from lipbridge.frontend.softmax import softmax


@handles("batch_norm", "_native_batch_norm_legit_no_training", "native_batch_norm", "cudnn_batch_norm")
def _batch_norm(builder: GraphBuilder, a: Arguments, shape: tuple[int, ...]) -> Curve:
    mean, variance = a["running_mean"], a["running_var"]
    if a.get("training") or not isinstance(variance, Tensor) or not isinstance(mean, Tensor):
        raise builder.unsupported("BatchNorm without running statistics mixes the inputs of a batch.")
    epsilon = a["eps"] if "eps" in a else a["epsilon"]
    given = (mean, variance, a["weight"], a["bias"], float(epsilon))
    return normalisation.batch_norm(builder, a["input"], *given, shape)


@handles("layer_norm", "native_layer_norm")
def _layer_norm(builder: GraphBuilder, a: Arguments, shape: tuple[int, ...]) -> Curve:
    given = (len(a["normalized_shape"]), a.get("weight"), a.get("bias"), float(a["eps"]))
    return normalisation.layer_norm(builder, a["input"], *given, shape)


@handles("group_norm")
def _group_norm(builder: GraphBuilder, a: Arguments, shape: tuple[int, ...]) -> Curve:
    given = (int(a["num_groups"]), a.get("weight"), a.get("bias"), float(a["eps"]))
    return normalisation.group_norm(builder, a["input"], *given, shape)


@handles("instance_norm")
def _instance_norm(builder: GraphBuilder, a: Arguments, shape: tuple[int, ...]) -> Curve:
    given = (a["weight"], a["bias"], float(a["eps"]))
    if a["use_input_stats"]:
        return normalisation.group_norm(builder, a["input"], shape[0], *given, shape)
    return normalisation.batch_norm(builder, a["input"], a["running_mean"], a["running_var"], *given, shape)


@handles("rms_norm", "_fused_rms_norm")
def _rms_norm(builder: GraphBuilder, a: Arguments, shape: tuple[int, ...]) -> Curve:
    epsilon = moments.default_epsilon(builder.dtype) if a["eps"] is None else a["eps"]
    axes = tuple(range(len(shape) - len(a["normalized_shape"]), len(shape)))
    return moments.rms_norm(builder, a["input"], axes, a["weight"], float(epsilon), shape)


@handles("rsqrt", "sqrt", "reciprocal")
def _root(builder: GraphBuilder, a: Arguments, shape: tuple[int, ...]) -> moments.Root:
    exponent = {"rsqrt": -0.5, "sqrt": 0.5, "reciprocal": -1.0}[plain_name(builder)]
    return moments.root(builder, a["self"], exponent)


@handles("softmax", "_softmax", "special_softmax", "log_softmax", "_log_softmax", "special_log_softmax")
def _softmax(builder: GraphBuilder, a: Arguments, shape: tuple[int, ...]) -> Curve:
    return softmax(builder, a["self"], axis_of(builder, a["dim"], len(shape)), shape, "log" in builder.operation)
