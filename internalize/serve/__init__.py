"""A recording, injecting endpoint between an agent of somebody else's and a model."""
