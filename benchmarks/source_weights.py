"""Does it help to weigh source images by their likeness to the target? See datl and l2tl."""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks import datl, l2tl


def main() -> None:
    """Run what the first word names; the last line of its output is JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="BENCHMARK")
    command = commands.add_parser("datl", help=datl.__doc__, description=datl.__doc__)
    command.add_argument("archive", type=Path, help="tar file of Tiny-ImageNet, one folder per class")
    command.add_argument("target", type=Path, help="folder of the first target, such as photos of ants and bees")
    command.add_argument(
        "--picked", nargs="+", default=datl.ARTHROPODS, help="source classes picked by hand (default: the arthropods)"
    )
    command.add_argument("--work", type=Path, help="folder for all files (default: a temporary one)")
    command.add_argument("--seeds", type=int, default=5, help="number of seeds, from 0 on (default: 5)")
    command.add_argument("--draws", type=int, default=12_800, help="source images per pretraining (default: 12800)")
    command.add_argument("--side", type=int, default=32, help="side of the source images, in pixels (default: 32)")
    command.add_argument("--threads", type=int, default=1, help="threads that decode (default: 1)")
    command.set_defaults(run=datl.run)
    l2tl.add_flags(commands.add_parser("l2tl", help=l2tl.__doc__, description=l2tl.__doc__))
    options = parser.parse_args()
    options.run(options)


if __name__ == "__main__":
    main()
