"""Experiments and what is read out of their result files."""
