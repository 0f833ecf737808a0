"""The environment `lab`: a small closed world in which what has to be learned is known bit by bit."""
