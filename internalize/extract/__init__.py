"""Extraction: trajectories to experience. `contrast` needs no language model."""
