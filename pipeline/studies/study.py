"""What the studies share: their data, one short training, and the score of images that it never saw.

In: a folder of archives and a group of `pipeline/conf/study`. Out: networks, and a score for every held-out image.
Whatever was trained or scored is kept in a scratch folder under a fingerprint of all that decides it, code included: a
study that was interrupted goes on.
"""

import argparse
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd

from pipeline.compose import compose_params
from pipeline.errors import InputError
from pipeline.files import atomic_path, digest_archive, write_text
from pipeline.folds.prediction import predict_true_size
from pipeline.folds.table import FoldedSplit, open_folded
from pipeline.folds.training import Edit, train_fold
from pipeline.images.splits import PreparedSplit
from pipeline.nuclei.metric import Matches, average_precision
from pipeline.nuclei.tuning import count_image, cross_fit, decoding_grid, score_decodings
from pipeline.params import Params
from pipeline.provenance import digest_code, fingerprint
from pipeline.stages import folds as folds_stage
from pipeline.stages import prepare as prepare_stage
from pipeline.unet.checkpoint import locked_folder
from pipeline.unet.model import NormalizedUNet, load_model
from pipeline.unet.runtime import start_runtime

RESULTS = Path(__file__).parent / "results"
# Those that keep scores: the code of any of them may decide one.
STUDIES = ("pipeline.studies.examples", "pipeline.studies.upsampling")


@dataclass(frozen=True)
class Network:
    """A trained network, on the CPU or where it last predicted, and a fingerprint of all that decided it."""

    model: NormalizedUNet
    key: str


def compose(study: str, overrides: Sequence[str] = ()) -> Params:
    """Return the parameters of a file of `pipeline/conf/study`, and overrides in the form of `dvc exp run -S`."""
    return compose_params([f"+study={study}", *overrides])


def load_data(archives: Path, scratch: Path, params: Params) -> FoldedSplit:
    """Prepare the archives and their folds, unless that was done, and return the images with their folds.

    Raises:
        InputError: there is no training archive, or it is damaged.
    """
    files = [archives / source.archive for source in params.data.sources.values()]
    if absent := [file for file in files if not file.exists()]:
        raise InputError(
            f"{absent[0]}: no such archive; `python -m pipeline fetch fixes --to {archives}` gets it, or name its "
            "folder by --data DIR (with make, data=DIR)"
        )
    parts = {"archives": [digest_archive(file) for file in files], "data": params.data.model_dump()}
    parts |= {"folds": params.folds.model_dump()}
    parts |= {"code": [digest_code(f"pipeline.stages.{stage}") for stage in ("prepare", "folds")]}
    folder = scratch / f"data-{fingerprint(parts)}"
    with locked_folder(folder):
        if not (folder / "folds.csv").is_file():
            prepare_stage.main(archives, folder / "train", folder / "test", params)
            folds_stage.main(folder / "train", folder, params)
    return open_folded(folder / "train", folder / "folds.csv", params.folds.ids)


def train_network(
    name: str, params: Params, images: PreparedSplit, fold: int, scratch: Path, edit: Edit | None = None
) -> Network:
    """Return a network trained on some images, ready to predict; that of an earlier call, if there is one.

    Args:
        name: of the network, by which its state and its weights are kept.
        params: the schedule and all else that decides it.
        images: what is learnt from.
        fold: whose seed is used.
        scratch: where checkpoints and weights are kept.
        edit: what is done to the network beside what `params` say.
    """
    plain = re.sub(r"[^A-Za-z0-9]+", "-", name)
    weights = scratch / "networks" / f"{plain}.safetensors"
    resume = scratch / "checkpoints" / plain
    train_fold(images, fold, params.recipe, weights, resume, params.housekeeping, edit=edit, title=name)
    model, metadata = load_model(weights, params.unet)
    if edit:
        edit(model)
    return Network(model, metadata["inputs"])


def keep_scores(
    networks: Sequence[Network], params: Params, held_out: pd.DataFrame, scratch: Path, score: Callable[[], list[float]]
) -> pd.DataFrame:
    """Return image_id, group, fold and ap of held-out images: of an earlier call, or what `score` finds."""
    parts = {"networks": [network.key for network in networks], "images": held_out["image_id"].tolist()}
    parts |= {"params": params.model_dump(), "code": [digest_code(name) for name in STUDIES]}
    path = scratch / "scores" / f"{fingerprint(parts)}.csv"
    if not path.is_file():
        keep_table(path, held_out[["image_id", "group", "fold"]].assign(ap=score()))
    return pd.read_csv(path, dtype={"image_id": str, "group": str})


def count_images(network: Network, images: PreparedSplit, params: Params) -> list[list[Matches]]:
    """Return the matches of each image with each decoding of `params.decode`, seen once at its true size."""
    runtime, choices = start_runtime(params.runtime), decoding_grid(params.decode)
    predictions = predict_true_size([network.model], images, params.contrast, params.size, params.predict, runtime)
    return [count_image(probabilities[0], images.label_map(name), choices) for name, probabilities, _ in predictions]


def choose_scores(counts: Sequence[Sequence[Matches]], parts: np.ndarray) -> list[float]:
    """Return the AP of each image by the decoding that images of the other parts chose.

    Args:
        counts: for each image the matches of each decoding.
        parts: (n,) integers, the part of each image.
    """
    fit = cross_fit(score_decodings(counts), parts)
    chosen = [fit.on_others[part] for part in parts.tolist()]
    return [float(average_precision(image[choice]).mean()) for image, choice in zip(counts, chosen, strict=True)]


def halve(groups: pd.Series) -> np.ndarray:
    """Return 0 or 1 for each image: two halves that split no group, filled from the largest group down."""
    part_of: dict[str, int] = {}
    filled = [0, 0]
    for group, size in groups.value_counts().sort_index().sort_values(ascending=False, kind="stable").items():
        part_of[str(group)] = part = int(filled[1] < filled[0])
        filled[part] += int(size)
    return groups.map(part_of).to_numpy()


def keep_table(path: Path, table: pd.DataFrame) -> None:
    """Write a table as CSV, numbers to four digits, atomically."""
    write_text(path, table.to_csv(index=False, lineterminator="\n", float_format="%.4g"))


def keep_figure(path: Path, figure: Any) -> None:
    """Write a figure of matplotlib, atomically and the same bytes for the same figure."""
    ids = matplotlib.rc_context({"svg.hashsalt": path.stem})  # of an SVG's parts; random without it
    with atomic_path(path) as partial, partial.open("wb") as file, ids:
        metadata = {"Date": None} if path.suffix == ".svg" else {"Software": None}
        figure.savefig(file, format=path.suffix[1:], metadata=metadata)


def make_plain_parser(description: str) -> argparse.ArgumentParser:
    """Return a parser of no arguments, for a study's docstring."""
    return argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)


def make_run_parser(description: str) -> argparse.ArgumentParser:
    """Return a parser of what every study of a finished run takes: its folder."""
    parser = make_plain_parser(description)
    parser.add_argument(
        "--run", type=Path, default=Path(), metavar="DIR", help="checkout of the run; default: the current folder"
    )
    return parser


def make_data_parser(description: str) -> argparse.ArgumentParser:
    """Return a parser of what every study of the archives takes: their folder, and the scratch folder."""
    parser = make_plain_parser(description)
    parser.add_argument("--data", type=Path, default=Path("data/dsb2018"), metavar="DIR", help="default: %(default)s")
    parser.add_argument(
        "--scratch", type=Path, default=Path(".resume/studies"), metavar="DIR", help="kept between calls; %(default)s"
    )
    return parser


def make_parser(description: str) -> argparse.ArgumentParser:
    """Return a parser of what every study that trains takes: archives, scratch folder, threads."""
    parser = make_data_parser(description)
    parser.add_argument("--threads", type=natural, default=2, metavar="N", help="of a training; default: %(default)s")
    return parser


def parse_arguments(description: str) -> argparse.Namespace:
    """Return the arguments of the studies of what is taught of the U-Net."""
    parser = make_parser(description)
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="DIR", help="default: pipeline/studies/results")
    parser.add_argument(
        "--steps", type=natural, metavar="N", help="of a training; default: what pipeline/conf/study says"
    )
    return parser.parse_args()


def overrides_of(arguments: argparse.Namespace) -> list[str]:
    """Return what the arguments change in the parameters."""
    steps = [f"train.steps_per_epoch={arguments.steps}"] if arguments.steps else []
    return [f"runtime.threads={arguments.threads}", *steps]


def natural(text: str) -> int:
    """Return a whole number above 0 that a command line names.

    Raises:
        argparse.ArgumentTypeError: it is none.
    """
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number above 0")
    return int(text)
