"""The command line's first module: it imports the rest where an interruption is a sentence too."""

import sys


def main() -> None:
    """Run `internalize.cli.main`. Ctrl-C while it is still being imported ends with one sentence and exit code 3."""
    try:
        from internalize.cli.main import main as run

        run()
    except KeyboardInterrupt:
        sys.stderr.write("internalize: interrupted\n")
        sys.exit(3)


if __name__ == "__main__":
    main()
