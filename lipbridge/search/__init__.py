"""Lower bounds with a witness: what no upper bound may fall below, and what tightness is measured against."""

from lipbridge.search.lower_bound import search_lower_bound
from lipbridge.search.witness import witness_value

__all__ = ["search_lower_bound", "witness_value"]
