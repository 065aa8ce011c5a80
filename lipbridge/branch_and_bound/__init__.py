"""Branch and bound: regions are split until the bound of each is good enough, on balls or for the exact constant."""
