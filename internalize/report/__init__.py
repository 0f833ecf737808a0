"""Reports: terminal, Markdown and a figure from a run directory."""
