"""The environment `lab`: a small closed world in which every bit that has to be learned is known."""
