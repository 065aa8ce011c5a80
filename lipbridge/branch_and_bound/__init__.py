"""The exact Lipschitz constant of piecewise linear networks, by branch and bound over their activations' pieces."""
