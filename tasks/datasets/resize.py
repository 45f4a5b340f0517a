"""Shrinking images by area averaging, exactly and the same on every machine."""

import numpy as np

_CHUNK = 4096  # images at a time, so that the float copy of 70,000 images stays small
_EXACT_FLOAT32 = 2**24  # float32 represents every integer up to here


def overlaps(source: int, target: int) -> np.ndarray:
    """How much of each source pixel lies in each target pixel, as integers.

    Both rows of pixels span the same length, cut into `source * target` units: a source pixel is `target` units wide, a target
    pixel `source` units.

    Args:
      source: number of pixels to average, s.
      target: number of pixels wanted, t <= s.

    Returns:
      int64 [t, s]; every row sums to s, every column to t.

    Example:
      >>> overlaps(3, 2)
      array([[2, 1, 0],
             [0, 1, 2]])
    """
    wanted, given = np.arange(target)[:, None], np.arange(source)[None, :]
    stop = np.minimum((wanted + 1) * source, (given + 1) * target)
    start = np.maximum(wanted * source, given * target)
    return np.maximum(stop - start, 0)


def area_average(images: np.ndarray, size: int) -> np.ndarray:
    """Average every target pixel over the area that it covers, and round half up.

    With A, B the overlaps of the rows and of the columns, `out = round(A image B^T / (H W))`. Sizes need not divide: 28 -> 8
    weighs the pixels that straddle a border by the part inside. The sums are integers that the floats of the matrix products
    represent exactly, so the order of summation cannot change a bit.

    Args:
      images: uint8 [N, H, W], or [N, H, W, C]: each channel by itself.
      size: height and width wanted, in pixels, at most H and W.

    Returns:
      uint8 [N, size, size] or [N, size, size, C].

    Raises:
      ValueError: if the images are not uint8 [N, H, W] or [N, H, W, C], or `size` is not in 1 ... min(H, W).

    Example:
      >>> area_average(np.array([[[0, 2], [4, 8]]], np.uint8), 1)
      array([[[4]]], dtype=uint8)
    """
    if images.ndim not in (3, 4) or images.dtype != np.uint8:
        raise ValueError(f"images must be uint8 [N, H, W] or [N, H, W, C], not {images.dtype} of shape {images.shape}")
    height, width = images.shape[1:3]
    if not 1 <= size <= min(height, width):
        raise ValueError(f"the image size must be from 1 to {min(height, width)} for images of {height}x{width}, not {size}")
    if (height, width) == (size, size):
        return images
    area = height * width
    dtype = np.float32 if 255 * area <= _EXACT_FLOAT32 else np.float64
    rows, columns = overlaps(height, size).astype(dtype), overlaps(width, size).astype(dtype)
    channels = images.reshape(*images.shape[:3], -1)
    resized = np.empty((len(images), size, size, channels.shape[3]), np.uint8)
    for start in range(0, len(images), _CHUNK):
        part = slice(start, start + _CHUNK)
        for channel in range(channels.shape[3]):
            sums = np.matmul(rows, np.matmul(channels[part, :, :, channel].astype(dtype), columns.T)).astype(np.int64)
            resized[part, :, :, channel] = (2 * sums + area) // (2 * area)
    return resized.reshape(*resized.shape[:3], *images.shape[3:])
