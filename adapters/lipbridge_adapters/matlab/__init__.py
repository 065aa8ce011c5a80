"""The weight files of the original LipSDP."""
