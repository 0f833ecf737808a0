"""Readers and writers for the logs of other tools, one module for each format."""
