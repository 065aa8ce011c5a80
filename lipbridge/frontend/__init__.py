"""From a torch module to a Graph: a builder with functions by concept, and the reader of torch.export's programs."""
