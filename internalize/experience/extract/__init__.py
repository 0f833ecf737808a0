"""Extraction: from trajectories to edits of the pool. `contrast` needs no language model."""
