"""Exact arithmetic that knows nothing of the code under test: networks along lines, norms of matrices, convolutions."""
