"""Semidefinite programs through cvxpy."""
