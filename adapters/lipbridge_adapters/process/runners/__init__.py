"""Scripts that the Pythons of other tools run; they import nothing of lipbridge."""
