"""Print the permutation symmetries of a task's weights, or of any function's, as tables."""

from lopt.commands.inspect import main

if __name__ == "__main__":
    main(prog="inspect_spec.py")
