"""Small data sets of the kinds that tfds has, written to disk by tfds itself."""

import io
import json
import struct

import numpy as np
import PIL.Image


def png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    PIL.Image.fromarray(image).save(buffer, format="png")
    return buffer.getvalue()


def image_features(shape, classes=10):
    import tensorflow_datasets as tfds

    return {"image": tfds.features.Image(shape=shape), "label": tfds.features.ClassLabel(num_classes=classes)}


def image_splits(splits):
    """`build`'s splits from images [N, H, W] or [N, H, W, 3] (or lists of images) and labels [N]."""
    return {
        split: [{"image": png(image), "label": int(label)} for image, label in zip(*pair, strict=True)]
        for split, pair in splits.items()
    }


def text_splits(splits):
    return {split: [{"text": text} for text in texts] for split, texts in splits.items()}


def build(root, name, features, splits, version="3.0.1", supervised=None, registered=False):
    """Let tfds write a data set below `root` as array_record, or register it as one that tfds can prepare.

    Args:
      root: a data directory of tfds.
      name: of the set; `name/config` for a set with configs.
      features: name -> feature.
      splits: name -> examples, in the form that tfds encodes.
      version: of the set.
      supervised: the supervised keys.
      registered: True: nothing is written, and tfds knows the name from now on.

    Returns:
      The directory of the version.
    """
    import tensorflow_datasets as tfds

    base, _, config = name.partition("/")

    class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version(version)
        BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=config)] if config else []

        def _info(self):
            return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(features), supervised_keys=supervised)

        def _split_generators(self, dl_manager):
            return {split: self._generate_examples(examples) for split, examples in splits.items()}

        def _generate_examples(self, examples):
            yield from enumerate(examples)

    Builder.name = base
    if registered:
        tfds.core.registered._DATASET_REGISTRY[base] = Builder
        return None
    builder = Builder(data_dir=root, file_format="array_record", **({"config": config} if config else {}))
    builder.download_and_prepare()
    return root / name / version


def as_tfrecord(version):
    """Rewrite a prepared version as tfrecord, its records unchanged; the checksums, which are not checked, are zero.

    tfds needs TensorFlow to write this format.
    """
    from array_record.python import array_record_module

    for path in version.glob("*.array_record*"):
        reader = array_record_module.ArrayRecordReader(str(path))
        frames = [struct.pack("<Q4x", len(record)) + record + bytes(4) for record in reader.read_all()]
        reader.close()
        (version / path.name.replace("array_record", "tfrecord")).write_bytes(b"".join(frames))
        path.unlink()
    info = json.loads((version / "dataset_info.json").read_text())
    (version / "dataset_info.json").write_text(json.dumps({**info, "fileFormat": "tfrecord"}))
