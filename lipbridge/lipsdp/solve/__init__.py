"""Multipliers of LipSDP without an SDP solver."""
