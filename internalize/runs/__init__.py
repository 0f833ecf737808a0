"""A run on disk and while it works: the run directory, caches, memory, progress."""
