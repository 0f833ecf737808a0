"""Recipes: the schema of every section, named presets of distillation, and overrides from the command line."""
