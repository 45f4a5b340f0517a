"""Data sets as `lopt.task.base.Datasets`: four splits, fixed by seed, on the device in their storage type; large texts stream.

| name | what | comes from | loader |
|---|---|---|---|
| `digits` | 8x8 digits, 10 classes | scikit-learn (`lopt[tasks]`), no download | `load_images` |
| `fashion_mnist` | 28x28 clothes, 10 classes | the Debian package `dataset-fashion-mnist`, IDX files, or tfds | `load_images` |
| `mnist` | 28x28 digits, 10 classes | IDX files, `mnist.npz`, or tfds | `load_images` |
| `cifar10`, `cifar100` | 32x32 photographs in colour, 10 or 100 classes | tfds, or `cifar10.npz` | `load_images` |
| `svhn_cropped` | 32x32 house numbers in colour, 10 classes | tfds, or `svhn_cropped.npz` | `load_images` |
| `python_docs` | the reference that comes with Python, 0.5 MB | Python, no download | `load_text` |
| `lm1b` | sentences of news, 4 GB | tfds, or `lm1b.txt` | `load_text` |
| a name of tfds's, such as `imdb_reviews`, `emnist/letters`, `mnist:3.0.1` | any images with a class each, any text | tfds | either |
| a path, such as `./corpus.txt`, `./set.npz`, `./idx-files` | a text; images as .npz or IDX files | there | either |

Sources, in this order: a given directory (`data_dir`), tfds's data directory ($TFDS_DATA_DIR or ~/tensorflow_datasets), a directory
of the system ($XDG_DATA_HOME, $XDG_DATA_DIRS, /usr/share: `datasets/NAME`), a download by tfds (`lopt[tfds]`). The names of arrays in
an .npz are in `tasks.datasets.npz`. Shrunk images and tokens are kept in $LOPT_CACHE_DIR, else $XDG_CACHE_HOME/lopt, else
~/.cache/lopt; the directory may be deleted at any time. `DatasetError` says what is wrong with a file, and what to do.
"""

from lopt.task import cache_root
from tasks.datasets.errors import DatasetError
from tasks.datasets.images import KNOWN_IMAGES, ImageInfo, check_images, load_images, read_images
from tasks.datasets.stream import StreamingText
from tasks.datasets.text import KNOWN_TEXTS, TextInfo, check_text, load_text
from tasks.datasets.tokenizer import Tokenizer
from tasks.datasets.tokenizer import load as load_tokenizer
from tasks.datasets.tokens import TokenSplit

__all__ = [
    "KNOWN_IMAGES",
    "KNOWN_TEXTS",
    "DatasetError",
    "ImageInfo",
    "StreamingText",
    "TextInfo",
    "TokenSplit",
    "Tokenizer",
    "cache_root",
    "check_images",
    "check_text",
    "load_images",
    "load_text",
    "load_tokenizer",
    "read_images",
]
