"""What a reader of a bound should know about the network: epsilons that decide, a softmax at the end."""

from __future__ import annotations

from lipbridge.constants.node_constants import normalize_norm_up
from lipbridge.graph.graph import Graph
from lipbridge.graph.nodes import (
    Normalize,
    Reshape,
    Softmax,
)


def notes(graph: Graph) -> str:
    """What to know of the bound, in one line: layers whose constant is that of their epsilon, a softmax; else empty."""
    return "; ".join(note for note in (_epsilon_note(graph), _softmax_note(graph)) if note)


def _epsilon_note(graph: Graph) -> str:
    rows = [node for node in graph.nodes if isinstance(node, Normalize)]
    if not rows:
        return ""
    worst = min(rows, key=lambda node: node.epsilon)
    factor, near = normalize_norm_up(2, worst.epsilon, 2), "constant" if worst.centred else "zero"
    return (
        f"{len(rows)} normalisation layer{'s' if len(rows) > 1 else ''} (e.g. `{worst.name}`) may stretch by "
        f"1/sqrt(epsilon) = {factor:.3g} near {near} inputs: this is why the bound is large"
    )


def _softmax_note(graph: Graph) -> str:
    last = graph.nodes[-1]
    while isinstance(last, Reshape):
        last = graph.nodes[last.inputs[0]]
    if not isinstance(last, Softmax):
        return ""
    if last.log:
        reason = "has the margins of the logits, and a larger constant"
    else:
        reason = "flattens the margins of the logits"
    return f"the last layer `{last.name}` is a {'log-' if last.log else ''}softmax, which {reason}: bound the logits"
