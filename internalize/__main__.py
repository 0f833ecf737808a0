"""`python -m internalize` is the command line."""

from internalize.cli.main import main

main()
