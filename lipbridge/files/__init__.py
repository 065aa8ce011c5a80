"""What lipbridge reads and writes: models, graphs, problems, the folders of runs."""
