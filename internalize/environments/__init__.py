"""Environments, a folder each: where tasks come from and what an action does. Found by name through `registry`."""
