"""What an inner problem must offer: tasks, families of them, their data, and how to make one of any loss."""

from lopt.config import operational
from lopt.config.caches import UntrustedCacheError, cache_root, private_directory
from lopt.config.errors import LoptError
from lopt.config.files import replace_durably
from lopt.task.base import (
    ArraySplit,
    Batch,
    Datasets,
    DataStream,
    Problem,
    Split,
    Task,
    TaskConfig,
    TaskFamily,
    uniform_index,
)

__all__ = [
    "ArraySplit",
    "Batch",
    "DataStream",
    "Datasets",
    "LoptError",
    "Problem",
    "Split",
    "Task",
    "TaskConfig",
    "TaskFamily",
    "UntrustedCacheError",
    "cache_root",
    "operational",
    "private_directory",
    "replace_durably",
    "uniform_index",
]
