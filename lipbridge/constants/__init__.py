"""Lipschitz constants of nodes and of whole Graphs."""
