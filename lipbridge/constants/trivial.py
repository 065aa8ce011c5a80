"""The trivial bound: the product of the layers' operator norms, proved."""

from __future__ import annotations

import time
from collections.abc import Sequence

from torch import nn

from lipbridge.constants.layer_constants import output_constants
from lipbridge.constants.notes import notes
from lipbridge.graph.graph import Graph
from lipbridge.problem.bound import Bound
from lipbridge.problem.question import Question
from lipbridge.vocabulary import Norm, Side


def trivial_bound(
    network: Graph | nn.Module,
    norm: Norm | str = 2,
    output_norm: Norm | str | None = None,
    *,
    input_shape: Sequence[int] | None = None,
) -> Bound:
    """The product of the layers' operator norms: a proved upper bound of the Lipschitz constant, everywhere.

    Each layer's norm is rounded outward (:func:`lipbridge.rigor.matrix.proved_operator_norm`, for convolutions
    :func:`lipbridge.rigor.convolution.proved_conv_norm`) and so is the product. A residual x + g(x) counts 1 + L(g), a
    concatenation the p-norm of its parts; linear branches of one node are merged first
    (:mod:`lipbridge.constants.layer_constants`). For an input and an output norm that differ, hidden layers may pass
    from a norm to a larger exponent, and the smallest product over those paths is taken.

    Args:
        network: a Graph, or a module that :func:`lipbridge.capture` can read.
        norm: input norm, 1, 2 or "inf".
        output_norm: output norm, the input norm if not given.
        input_shape: of one input of a module, as for :func:`lipbridge.capture`.

    Raises:
        UnsupportedProblem: for inf->1, inf->2 and 2->1, whose matrix norms are NP-hard.
        UnsupportedOperation: for a layer outside the Graph's nodes.
        NumericalFailure: if weights hold NaN or a norm overflows.

    Source: Szegedy et al. 2014; mixed norms and rounding are ours. Law: never below any witness.
    """
    if not isinstance(network, Graph):
        from lipbridge.frontend.capture import capture

        network = capture(network, input_shape)
    question = Question.everywhere(norm, output_norm)
    start = time.perf_counter()
    value = output_constants(network, question.input_norm, question.output_norm)[question.output_norm]
    told = notes(network)
    return Bound(
        value=value,
        side=Side.UPPER,
        proved=True,
        question=question,
        method="trivial bound",
        detail=told,
        seconds=time.perf_counter() - start,
    )
