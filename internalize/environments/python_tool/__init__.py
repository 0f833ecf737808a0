"""The tool `python`: runs the programs of a policy in a sandbox. The environments `maths` and `web` offer it."""
