"""Scaling factors of chains."""
