"""`python -m internalize.cli` is the command line."""

from internalize.cli.main import main

main()
