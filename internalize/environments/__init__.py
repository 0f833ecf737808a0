"""Environments, a folder each: they provide tasks and execute actions. `registry` finds them by name."""
