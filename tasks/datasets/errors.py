"""The one error that the loaders of data sets raise."""

from lopt.task import LoptError


class DatasetError(LoptError, ValueError):
    """A data set that cannot be found or read; the message names the file or directory and says what to do."""
