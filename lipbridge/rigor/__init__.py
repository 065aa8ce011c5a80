"""Proofs in floating point: operator norms, Gram matrices, convolutions, roots of unity, running errors."""
