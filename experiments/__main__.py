"""`python -m experiments NAME ...`: run one experiment; what goes wrong is said in a line, as by the command line."""

import sys
from importlib import import_module

from ranker.errors import PlurankError


def main(argv: list[str]) -> int:
    """Run the experiment that the first argument names with the others; returns its exit status."""
    name, *sys.argv[1:] = argv
    try:
        status: int = import_module(f"experiments.{name}").main()
    except PlurankError as error:
        print(f"plurank: {error}", file=sys.stderr)
        return 2
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
