"""Episodes: the only agent loop, and the backends that run it over many tasks."""
