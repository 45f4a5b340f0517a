"""Run every conformance vector of a directory through the UNF layer.

Each pair NAME.json + NAME.npz is one weight space with random inputs, coefficients, and the exact outputs. JSON: `spec` (per tensor, the
permutation id of each axis), `sizes` (per id), `terms` (per output tensor a list of `[input tensor, partition]`). NPZ: `in/T`, `coef/T`
(in the order of `terms[T]`), `bias/T`, `out/T`. Prints the largest absolute error of each and exits with status 1 if one is above 1e-5.

    python scripts/conformance.py DIR
"""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from lopt.layers.unf import coefficients_from_terms, unf_layer
from lopt.symmetry.basis import make_plan
from lopt.symmetry.spec import WeightSpec

TOLERANCE = 1e-5


def vector_spec(description: dict) -> WeightSpec:
    """The `WeightSpec` of a vector: permutation id i becomes the name `si`."""
    return WeightSpec.parse({path: " ".join(f"s{i}" for i in ids) for path, ids in description["spec"].items()})


def run_vector(path: Path) -> float:
    """The largest absolute error of the public layer on one vector.

    Args:
      path: NAME.json; NAME.npz stands beside it.

    Raises:
      ValueError: if the vector's terms are not exactly the basis of its spec.
    """
    description = json.loads(path.read_text())
    arrays = np.load(path.with_suffix(".npz"))
    spec = vector_spec(description)
    for output, terms in description["terms"].items():
        if len(terms) != len(arrays[f"coef/{output}"]):
            raise ValueError(f"'{path.name}' lists {len(terms)} terms for {output}, its NPZ has {len(arrays[f'coef/{output}'])}")
    per_output = {
        output: {
            (source, tuple(sorted(tuple(sorted(block)) for block in partition))): matrix
            for (source, partition), matrix in zip(terms, arrays[f"coef/{output}"], strict=True)
        }
        for output, terms in description["terms"].items()
    }
    bias = {output: arrays[f"bias/{output}"] for output in spec.paths}
    theta = coefficients_from_terms(make_plan(spec), per_output, bias)
    out = jax.jit(unf_layer(spec, description["c_in"], description["c_out"]).apply)(
        theta, {tensor: jnp.asarray(arrays[f"in/{tensor}"]) for tensor in spec.paths}
    )
    errors = [np.max(np.abs(np.asarray(out[tensor]) - arrays[f"out/{tensor}"])) for tensor in spec.paths]
    return float(np.max(errors))  # NaN if any error is


def run_directory(directory: Path) -> Iterator[tuple[str, float]]:
    """`(name, largest absolute error)` of every vector in a directory.

    Raises:
      FileNotFoundError: if the directory holds no vector, or one lacks its NPZ file.
    """
    paths = sorted(directory.glob("*.json"))
    if not paths:
        raise FileNotFoundError(f"no conformance vectors (NAME.json + NAME.npz) in '{directory}'")
    for path in paths:
        if not path.with_suffix(".npz").is_file():
            raise FileNotFoundError(f"'{path.with_suffix('.npz')}' is missing beside '{path.name}'")
        yield path.stem, run_vector(path)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path, metavar="DIR", help="folder with NAME.json and NAME.npz pairs")
    directory = parser.parse_args(argv).directory
    failed = False
    try:
        for name, error in run_directory(directory):
            passed = error <= TOLERANCE  # False for NaN too
            print(f"{name:<16} {error:.2e} {'ok' if passed else 'FAILED'}")
            failed |= not passed
    except (FileNotFoundError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
