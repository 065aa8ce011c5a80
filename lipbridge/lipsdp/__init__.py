"""The LipSDP matrix inequality: its system, its proof, and the ways to its multipliers."""
