"""Operator norms of layers: the accurate value, the estimates for training; the proved value is in ``rigor``."""

from lipbridge.norms.estimate import dual_matrix, estimate_by_dual, estimate_by_power
from lipbridge.norms.gram import gram_dual
from lipbridge.norms.matrix import CHEAP_PAIRS, operator_norm, require_cheap
from lipbridge.norms.power import initial_vector, power_step

__all__ = [
    "CHEAP_PAIRS",
    "dual_matrix",
    "estimate_by_dual",
    "estimate_by_power",
    "gram_dual",
    "initial_vector",
    "operator_norm",
    "power_step",
    "require_cheap",
]
