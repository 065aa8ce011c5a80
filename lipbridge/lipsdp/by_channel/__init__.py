"""LipSDP on convolutions: one multiplier a channel, and no matrix of a convolution."""
