"""`python -m lopt`: trained optimizers, symmetries and races, where lopt alone is installed."""

import sys
from collections.abc import Sequence

USAGE = """\
python -m lopt load [SOURCE]                          the trained optimizers that are there, or the card of one
python -m lopt inspect --task FILE.py:FUNCTION        the permutation symmetries of a task's weights, or of any function's (--module)
python -m lopt evaluate --task FILE.py:FUNCTION       race trained optimizers and tuned rivals on a task of your own
python -m lopt COMMAND --help

Meta-training and the paper's comparisons are scripts of a clone of the repository; from Python: lopt.meta_train."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run a command."""
    given = list(sys.argv[1:] if argv is None else argv)
    name, rest = (given or ["--help"])[0], given[1:]
    if name in ("-h", "--help"):
        print(USAGE)
        return
    # Imported here, so that help answers at once.
    if name == "load":
        from lopt.commands.load import main as command
    elif name == "inspect":
        from lopt.commands.inspect import main as command
    elif name == "evaluate":
        from lopt.commands.evaluate import main as command
    else:
        sys.exit(f"python -m lopt: there is no command '{name}'\n\n{USAGE}")
    command(rest)


if __name__ == "__main__":
    main()
