"""Modules that bound-trained networks are made of, and networks by name."""
