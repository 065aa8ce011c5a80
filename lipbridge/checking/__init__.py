"""Checks of proofs in exact arithmetic, apart from the solvers that find them: they share the Graph alone."""
