"""An endpoint between a user's own agent and a model: it injects experience and records calls."""
