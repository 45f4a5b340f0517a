"""Configs: from a file and a command line to frozen dataclasses, and from those to JSON and back.

An experiment is a Python file with a docstring and a module-level `config`, an instance of a frozen dataclass whose fields are
int, float, bool, str, None, tuples of these, and further frozen dataclasses. Each class sits beside what it configures.
"""

from lopt.config.command_line import load_file, parse_experiment, parse_part
from lopt.config.errors import LoptError
from lopt.config.files import parse_json, replace_durably, write_atomically
from lopt.config.names import path_of
from lopt.config.serialize import (
    CONFIG_FILE,
    UntrustedConfigError,
    check_run_dir,
    claim_run_dir,
    completed,
    from_dict,
    load_part,
    load_run,
    save,
    to_dict,
)
from lopt.config.tree import ConfigError, differences, leaves, operational, validate

__all__ = [
    "CONFIG_FILE",
    "ConfigError",
    "LoptError",
    "UntrustedConfigError",
    "check_run_dir",
    "claim_run_dir",
    "completed",
    "differences",
    "from_dict",
    "leaves",
    "load_file",
    "load_part",
    "load_run",
    "operational",
    "parse_experiment",
    "parse_json",
    "parse_part",
    "path_of",
    "replace_durably",
    "save",
    "to_dict",
    "validate",
    "write_atomically",
]
