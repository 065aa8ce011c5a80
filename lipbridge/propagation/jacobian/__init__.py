"""Bounds of the Clarke Jacobian on regions, and of its norms."""
