"""Which other data sets a task can be tried on without a download."""

from tasks.datasets import tfds
from tasks.datasets.images import KNOWN_IMAGES
from tasks.datasets.places import system_directories
from tasks.datasets.text import KNOWN_TEXTS

_WITH_PACKAGES = ("digits", "python_docs")  # scikit-learn's, Python's


def local_alternatives(dataset: str) -> tuple[str, ...]:
    """Known data sets of the same kind as this one that are on this machine; none for one that is not known.

    Example:
      >>> "digits" in local_alternatives("fashion_mnist"), "python_docs" in local_alternatives("digits")
      (True, False)
    """
    known = next((names for names in (KNOWN_IMAGES, KNOWN_TEXTS) if dataset in names), ())
    return tuple(name for name in known if name != dataset and _is_here(name))


def _is_here(name: str) -> bool:
    places = any(directory.is_dir() for directory in system_directories(name))
    return name in _WITH_PACKAGES or places or bool(tfds.find_prepared(tfds.default_root(), name))
