"""The config of a task by its name, whoever wrote the task: a registered one, a function of anybody's own, or a `Task` as it is."""

import dataclasses
import difflib
import inspect
import typing
from pathlib import Path
from typing import Any, ClassVar

from lopt.config.importing import import_place, is_place
from lopt.config.names import NAMES, registered
from lopt.config.tree import ConfigError, is_frozen, operational, shown
from lopt.symmetry.spec import named_leaves
from lopt.task.base import Problem, TaskConfig

_PLAIN = (bool, int, float, str, type(None))


def task_names() -> list[str]:
    """The tasks that have a name: those of the package `tasks` where it lies beside lopt."""
    return sorted(set(registered()) - set(NAMES))


def task_config(task: str | Problem | TaskConfig, directory: str | Path | None = None) -> TaskConfig:
    """The config of a task, however it is named.

    Args:
      task: a registered name; `module:function` or `path/to/file.py:function`, a function (or the class of a config) that makes one; a
        `Task` or `TaskFamily`; or a config, which is returned as it is.
      directory: where the module or file of a function lies; None: the working directory. A run records it.

    Raises:
      ConfigError: if there is no such task; says which there are, and what a name may be.

    Example:
      >>> task_config("mlp").hidden
      (32,)
    """
    if isinstance(task, TaskConfig):
        return task
    if isinstance(task, Problem):
        return GivenTaskConfig.of(task)
    place = registered().get(task) if task in task_names() else None
    if place is not None:
        return import_place(place)()
    if not is_place(task):
        near = difflib.get_close_matches(task, task_names(), n=1)
        hint = f", did you mean {near[0]}? T" if near else "; t"
        raise ConfigError(
            f"no task '{task}'{hint}he tasks are: {', '.join(task_names()) or 'none, as tasks/ is not beside lopt'}. One of your own "
            "is named by the function that makes it: module:function or path/to/file.py:function"
        )
    where, _, function = task.rpartition(":")
    root = Path.cwd() if directory is None else Path(directory).resolve()
    if where.endswith(".py"):
        file = (root / where).resolve()
        root, where = file.parent, file.name
    config = ImportedTaskConfig(f"{where}:{function}", str(root))
    config.maker()  # so that a wrong name is said at once
    return config


@dataclasses.dataclass(frozen=True)
class ImportedTaskConfig(TaskConfig):
    """A task that a function of your own makes, so that it can be meta-trained on in a run directory like any other."""

    IMPORTS: ClassVar[tuple[str, ...]] = ("function",)  # fields that a config from elsewhere may not fill

    function: str
    """`module:function` or `file.py:function`: called with `arguments`, it returns a task, a family, or the config of one."""
    directory: str = operational("")
    """Where Python finds the module or the file; the working directory, if it is empty."""
    arguments: tuple[tuple[str, Any], ...] = ()
    """Name and value of what the function is given; its other parameters keep their defaults."""

    def __post_init__(self) -> None:
        """Raise `ValueError` unless the function reads `module:function`."""
        if not is_place(self.function):
            raise ConfigError(f"function must read module:function, such as 'my_tasks:make_task', not '{self.function}'")

    def maker(self) -> Any:
        """The function.

        Raises:
          ConfigError: if its module, its file or itself is missing, or it is not callable.
        """
        try:
            found = import_place(self.function, self.directory or None)
        except ConfigError as error:
            raise ConfigError(f"the task '{self.function}': {error}") from error
        if not callable(found):
            raise ConfigError(f"the task '{self.function}': {type(found).__name__} is not a function that makes one")
        return found

    def make(self) -> Problem:
        """Import the module and call the function.

        Raises:
          ConfigError: if the function is missing, has no such parameters, or returns something else than a task, a family or the
            config of one. What is raised inside the function is raised as it is.
        """
        maker = self.maker()
        try:
            inspect.signature(maker).bind(**dict(self.arguments))
        except TypeError as error:
            raise ConfigError(f"the task '{self.function}': {error}") from error
        made = maker(**dict(self.arguments))
        problem = made.make() if isinstance(made, TaskConfig) else made
        if not isinstance(problem, Problem):
            raise ConfigError(f"'{self.function}' must return a lopt.Task or lopt.TaskFamily, but returned {shown(made)}")
        return problem

    def opened(self) -> TaskConfig:
        """A config whose fields are the function's parameters, for a command line; `closed()` of it is this one with their values.

        Parameters are fields where they have a plain default (numbers, text, tuples of them) or, without one, an annotation.

        Raises:
          ConfigError: naming the parameter without default and annotation.
        """
        maker, given = self.maker(), dict(self.arguments)
        namespace = {"_origin": self, "__doc__": maker.__doc__}
        if isinstance(maker, type) and is_frozen(maker):
            opened = dataclasses.make_dataclass(maker.__name__, [], bases=(_Opened, maker), frozen=True, namespace=namespace)
            return opened(**given)
        hints, fields = typing.get_type_hints(maker), []
        for name, parameter in inspect.signature(maker).parameters.items():
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                continue
            default = given.get(name, parameter.default)
            if default is parameter.empty:
                if name not in hints:
                    raise ConfigError(f"the task '{self.function}': its parameter '{name}' needs a default or an annotation")
                import tyro  # takes 0.2 s

                default = tyro.MISSING  # asked for by the command line
            elif not _is_plain(default):
                continue
            fields.append((name, hints.get(name, type(default)), dataclasses.field(default=default)))
        if not fields:
            return self
        return dataclasses.make_dataclass(
            f"Options of {self.function}", fields, bases=(_Opened,), frozen=True, namespace=namespace
        )()


@dataclasses.dataclass(frozen=True)
class _Opened(TaskConfig):
    _origin: ClassVar[ImportedTaskConfig]

    def closed(self) -> ImportedTaskConfig:
        """The config that a run records: the function, and the arguments that differ from its defaults."""
        parameters = inspect.signature(self._origin.maker()).parameters
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.init}
        arguments = tuple((name, value) for name, value in values.items() if not _same(value, parameters[name].default))
        return dataclasses.replace(self._origin, arguments=arguments)


@dataclasses.dataclass(frozen=True)
class GivenTaskConfig(TaskConfig):
    """A `Task` object from Python, as in a notebook. A run records what it is called and what its weights are, but cannot make it again."""

    name: str
    """Of the task."""
    weights: tuple[str, ...] = ()
    """Path, shape and axes of every weight, so that a resumed run is given the same."""
    problem: Problem | None = dataclasses.field(default=None, init=False, repr=False, compare=False)
    """The task itself, which no file holds."""

    @classmethod
    def of(cls, problem: Problem) -> "GivenTaskConfig":
        """The config of a task that is there."""
        leaves = named_leaves(problem.param_shapes())
        made = cls(problem.name, tuple(f"{path} {list(leaf.shape)} {problem.spec.notation(path)}" for path, leaf in leaves))
        object.__setattr__(made, "problem", problem)
        return made

    def make(self) -> Problem:
        """The task, where it is there.

        Raises:
          ConfigError: if this was read from a file.
        """
        if self.problem is None:
            raise ConfigError(
                f"this run was meta-trained on a Task object from Python, called '{self.name}', so it cannot be reopened without the "
                "object: give that to meta_train again, or race its theta by lopt.load(run_dir, spec=task.spec). A run that names the "
                "function which makes the task, MetaTrainConfig(task=task_config('module:function')), can be reopened anywhere"
            )
        return self.problem


def _is_plain(value: Any) -> bool:
    return all(map(_is_plain, value)) if type(value) is tuple else type(value) in _PLAIN


def _same(value: Any, default: Any) -> bool:
    return type(value) is type(default) and value == default
