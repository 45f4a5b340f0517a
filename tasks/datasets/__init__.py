"""Data sets as `lopt.task.Datasets`: on the device, in their storage type, split by seed."""

from tasks.datasets.errors import DatasetError
from tasks.datasets.images import KNOWN_IMAGES, ImageInfo, check_images, load_images, read_images

__all__ = ["KNOWN_IMAGES", "DatasetError", "ImageInfo", "check_images", "load_images", "read_images"]
