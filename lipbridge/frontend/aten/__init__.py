"""The operations of torch.export's programs, each in terms of the builder's functions."""
