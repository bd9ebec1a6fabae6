"""Archives and prepared images: `fetch`, `pack`, `show`."""

import argparse
from pathlib import Path

from pipeline.commands.command import BATCH, PARAMS, TRAIN, Commands


def add_commands(commands: Commands) -> None:
    """Add the parsers of these commands."""
    fetch = commands.add_parser("fetch", help="get the competition's archives")
    fetch.add_argument(
        "source",
        metavar="SOURCE",
        help="fixes, bbbc038, kaggle, or a file or folder that holds the zips, unpacked or not",
    )
    fetch.add_argument("--to", type=Path, default=Path("data/dsb2018"), metavar="DIR", help="default: %(default)s")
    fetch.set_defaults(call=_fetch)

    pack = commands.add_parser(
        "pack", help="write the prepared training images as one small file, for a machine that has nothing else"
    )
    pack.add_argument(
        "--out", type=Path, default=Path("data/packed/train.zip"), metavar="FILE", help="ZIP; default: %(default)s"
    )
    pack.set_defaults(call=_pack)

    show = commands.add_parser("show", help="draw what training sees by params.yaml, with the true outlines of nuclei")
    show.add_argument("what", choices=("batch",), help="augmented tiles, as a batch of training has them")
    show.add_argument("--out", type=Path, default=BATCH, metavar="FILE", help="PNG; default: %(default)s")
    show.add_argument("--tiles", type=int, metavar="N", help="how many; default: train.batch")
    show.add_argument("--seed", type=int, metavar="N", help="another one draws others; default: train.seed")
    show.set_defaults(call=_show)
    for command in (pack, show):
        command.add_argument(
            "--prepared", type=Path, default=TRAIN, metavar="DIR", help="what `prepare` wrote; default: %(default)s"
        )


def _fetch(arguments: argparse.Namespace) -> None:
    from pipeline.kaggle.fetch import fetch

    for file in fetch(arguments.source, arguments.to):
        print(f"{file.path}  sha256 {file.sha256}  {'fetched' if file.new else 'already there'}")


def _pack(arguments: argparse.Namespace) -> None:
    from pipeline.images.packed import write_packed
    from pipeline.params import load_params

    images = write_packed(arguments.prepared, arguments.out, load_params(PARAMS).housekeeping.workers)
    print(f"{arguments.out}: {images} images, {arguments.out.stat().st_size / 1e6:.1f} MB")


def _show(arguments: argparse.Namespace) -> None:
    from pipeline.experiments.batch import write_sheet
    from pipeline.params import load_params

    recipe = load_params(PARAMS).recipe
    count = recipe.train.batch if arguments.tiles is None else arguments.tiles
    seed = recipe.train.seed if arguments.seed is None else arguments.seed
    write_sheet(arguments.out, arguments.prepared, recipe, count, seed)
    print(f"{arguments.out}: {count} tiles of {recipe.train.crop_px} px, seed {seed}")
