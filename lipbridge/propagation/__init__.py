"""Which values the nodes of a Graph take on balls."""
