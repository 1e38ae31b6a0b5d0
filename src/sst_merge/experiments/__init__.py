"""Experiments: grids of run files, their result files and their tables."""
