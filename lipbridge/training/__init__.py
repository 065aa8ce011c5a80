"""Training with the trivial bound in the loss."""
