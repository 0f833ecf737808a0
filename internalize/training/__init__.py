"""Distillation: examples, teachers, losses, scoring, the trainer and checkpoints."""
