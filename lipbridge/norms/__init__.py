"""Operator norms of layers: the accurate value, the estimate for training; the proved value is in ``rigor``."""

from lipbridge.norms.matrix import CHEAP_PAIRS, operator_norm, require_cheap
from lipbridge.norms.power import estimate_norm, initial_vector

__all__ = ["CHEAP_PAIRS", "estimate_norm", "initial_vector", "operator_norm", "require_cheap"]
