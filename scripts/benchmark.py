"""Measure what lopt costs; every line of output is one JSON object.

python scripts/benchmark.py compile --blocks 2 4 12            # trunk + one UNF layer over a Transformer's weights
python scripts/benchmark.py compile --blocks 2 4 12 --share role
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence


def compile_one(blocks: int, share: str) -> None:
    import jax

    from lopt.benchmarks import compile_cost, environment
    from lopt.networks import UNFConfig
    from tasks.transformer import Sizes, transformer, transformer_spec

    spec, (init, _) = transformer_spec(blocks), transformer(Sizes(vocabulary=256, blocks=blocks, head_width=8))
    network = UNFConfig(share=share)  # pyright: ignore[reportArgumentType]  argparse has checked it
    cost = compile_cost(spec, spec.sizes(jax.eval_shape(init, jax.random.key(0))), network)
    print(json.dumps({"benchmark": "compile", "blocks": blocks, "share": share, **cost, **environment()}), flush=True)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="benchmark.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("compile", help="time to trace and compile an update network, by number of Transformer blocks")
    command.add_argument(
        "--blocks", type=int, nargs="+", default=[2, 4, 12], metavar="N", help="numbers of blocks (default: 2 4 12)"
    )
    command.add_argument(
        "--share", choices=("none", "role"), default="none", help="coefficients of the UNF layer: each pair's own, or by role"
    )
    args = parser.parse_args(argv)
    if min(args.blocks) < 1:
        parser.error(f"--blocks must be at least 1, got {min(args.blocks)}")
    if len(args.blocks) == 1:
        compile_one(args.blocks[0], args.share)
        return
    for blocks in args.blocks:  # each in a process of its own, so that neither caches nor peak memory carry over
        done = subprocess.run([sys.executable, __file__, "compile", "--blocks", str(blocks), "--share", args.share])
        if done.returncode:
            sys.exit(done.returncode)


if __name__ == "__main__":
    main()
