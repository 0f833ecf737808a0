"""Distillation: the effect of experience into the weights."""
