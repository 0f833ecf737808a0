"""The command line: one module for each group of commands. What is heavy is imported by the command that needs it."""
