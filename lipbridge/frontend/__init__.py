"""From a torch module to a Graph."""
