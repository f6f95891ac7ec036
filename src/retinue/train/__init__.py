"""Floor 5, train: stages, optimizer groups, objectives, the loop, checkpoints, reports."""
