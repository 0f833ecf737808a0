"""The stages of an iteration over a run directory, each resumable, and the commands built from single stages."""
