"""Environments: who asks. Found by name through `registry`."""
