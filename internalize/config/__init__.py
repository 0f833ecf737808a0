"""Recipes: the schema of every section, named algorithms of distillation, and overrides from the command line."""
