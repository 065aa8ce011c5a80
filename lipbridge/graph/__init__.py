"""The Graph: nodes, their evaluation, and the network that they make."""
