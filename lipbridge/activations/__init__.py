"""Scalar functions: the registry of their facts, their slopes on intervals, and the modules that compute them."""
