"""Rewrites of a Graph that keep its function."""
