"""What the studies share: their data, one short training, and the score of images that it never saw.

In: a folder of archives and a group of `pipeline/conf/study`. Out: networks, and a score for every held-out image.
Whatever was trained or scored is kept in a scratch folder under a fingerprint of all that decides it, code included: a
study that was interrupted goes on.
"""

import argparse
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd
from dvc.utils.hydra import compose_and_dump

import pipeline
from pipeline.errors import InputError
from pipeline.experiments.inference import predict_at
from pipeline.files import atomic_path, sha256_of, write_text
from pipeline.images.dataset import base_zooms
from pipeline.images.folds import read_folds
from pipeline.images.store import Pack
from pipeline.images.table import read_table
from pipeline.nuclei.metric import Matches, average_precision
from pipeline.nuclei.tuning import candidates, count_image, cross_fit, score_candidates
from pipeline.params import Params, load_params
from pipeline.stages import folds as folds_stage
from pipeline.stages import prepare as prepare_stage
from pipeline.stages.train import describe_means, describe_params, load_batches, make_preparation, make_trainer
from pipeline.unet.checkpoint import Checkpoint, digest_sources, fingerprint, locked_folder
from pipeline.unet.model import NormalizedUNet
from pipeline.unet.runtime import configure_torch
from pipeline.unet.training import train_model
from pipeline.unet.weights import load_weights, save_weights

PACKAGE = Path(str(pipeline.__file__)).parent
RESULTS = Path(__file__).parent / "results"

# Changes a network in place: before its first step, and again after its weights were loaded.
Edit = Callable[[NormalizedUNet], None]


@dataclass(frozen=True)
class Data:
    """A prepared data set: its pack, its table with the columns `group` and `fold` of its fold table, and a digest."""

    pack: Pack
    table: pd.DataFrame
    digest: str

    def split(self, fold: int) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Return the rows of the images outside of `fold`, and of those in it."""
        is_val = self.table["fold"] == fold
        return self.table[~is_val], self.table[is_val]


@dataclass(frozen=True)
class Network:
    """A trained network, on the CPU or where it last predicted, and a fingerprint of all that decided it."""

    model: NormalizedUNet
    key: str


def compose(study: str, overrides: Sequence[str] = ()) -> Params:
    """Return the parameters of a file of `pipeline/conf/study`, and overrides in the form of `dvc exp run -S`."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "params.yaml"
        compose_and_dump(path, str(PACKAGE / "conf"), None, "config", [], [f"+study={study}", *overrides])
        return load_params(path)


def load_data(archives: Path, scratch: Path, params: Params) -> Data:
    """Prepare the archives and their folds, unless that was done, and return the data.

    Raises:
        InputError: there is no training archive, or it is damaged.
    """
    archive = archives / params.data.train
    if not archive.is_file():
        raise InputError(
            f"{archive}: no such archive; `python -m pipeline fetch fixes --to {archives}` gets it, or name its "
            "folder by --data DIR (with make, data=DIR)"
        )
    sources = digest_sources(sorted((PACKAGE / "images").glob("*.py")))
    parts = {"archive": sha256_of(archive), "data": params.data.model_dump(), "folds": params.folds.model_dump()}
    key = fingerprint({**parts, "code": sources})
    folder = scratch / f"data-{key}"
    with locked_folder(folder):
        if not (folder / "folds.csv").is_file():
            prepare_stage.main(archives, folder / "train", folder / "test", params)
            folds_stage.main(folder / "train", folder, params)
    folds = read_folds(folder / "folds.csv")[["image_id", "group", "fold"]]
    table = read_table(folder / "train").merge(folds, on="image_id")
    return Data(Pack(folder / "train" / "images.npz"), table, key)


def train_network(
    name: str, params: Params, data: Data, table: pd.DataFrame, fold: int, scratch: Path, edit: Edit | None = None
) -> Network:
    """Return a network trained on the images of `table`, ready to predict; that of an earlier call, if there is one.

    Args:
        name: for the progress bar.
        params: all parameters; the schedule is `train`.
        data: where the images are.
        table: rows of its table.
        fold: whose seed is used.
        scratch: where checkpoints and weights are kept.
        edit: what is done to the network beside what `params` say.
    """
    configure_torch(params.train.threads)
    trainer = make_trainer(fold, params)
    parts = {"params": describe_params(params), **describe_means(trainer)}
    parts |= {"data": data.digest, "images": table["image_id"].tolist(), "fold": fold}
    if edit:
        parts |= {"edit": edit.__name__, "studies": digest_sources(sorted((PACKAGE / "studies").glob("*.py")))}
        edit(trainer.model)
        edit(trainer.ema)
    key = fingerprint(parts)
    path = scratch / "networks" / f"{key}.safetensors"
    with locked_folder(scratch / "checkpoints" / key) as folder:
        if not path.is_file():
            train_model(
                trainer,
                lambda step: load_batches(data.pack, table, trainer, params, step),
                make_preparation(params, trainer.model.margin_px),
                Checkpoint(folder / "states"),
                lambda _model, _step: {},
                params.housekeeping.checkpoint_every_s,
                name,
            )
            save_weights(trainer.ema, path, {"name": name})
        shutil.rmtree(folder / "states", ignore_errors=True)
    model = load_weights(path, params.unet)[0]
    if edit:
        edit(model)
    return Network(model, key)


def keep_scores(
    networks: Sequence[Network], params: Params, held_out: pd.DataFrame, scratch: Path, score: Callable[[], list[float]]
) -> pd.DataFrame:
    """Return image_id, group, fold and ap of held-out images: of an earlier call, or what `score` finds."""
    rooms = ("nuclei", "experiments", "studies")
    sources = [path for room in rooms for path in sorted((PACKAGE / room).glob("*.py"))]
    parts = {"networks": [network.key for network in networks], "images": held_out["image_id"].tolist()}
    parts |= {"params": params.model_dump(), "code": digest_sources(sources)}
    path = scratch / "scores" / f"{fingerprint(parts)}.csv"
    if not path.is_file():
        keep_table(path, held_out[["image_id", "group", "fold"]].assign(ap=score()))
    return pd.read_csv(path, dtype={"image_id": str, "group": str})


def count_images(network: Network, data: Data, table: pd.DataFrame, params: Params) -> list[list[Matches]]:
    """Return the matches of each image with each candidate of `params.decode`, seen once at its true size."""
    zooms = base_zooms(table["median_area_px"].to_numpy(np.float64), params.train.object_diameter_px)
    zoom_of = dict(zip(table["image_id"], zooms.tolist(), strict=True))
    images = ((name, data.pack[f"{name}.image"]) for name in table["image_id"])
    choices = candidates(params.decode)
    return [
        count_image(probabilities[0], data.pack[f"{name}.label_map"], choices)
        for name, probabilities, _ in predict_at([network.model], images, params, lambda name, _: zoom_of[name])
    ]


def choose_scores(counts: Sequence[Sequence[Matches]], parts: np.ndarray) -> list[float]:
    """Return the AP of each image by the decoding that images of the other parts chose.

    Args:
        counts: for each image the matches of each candidate.
        parts: (n,) integers, the part of each image.
    """
    fit = cross_fit(score_candidates(counts), parts)
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
    with atomic_path(path) as partial, partial.open("wb") as file:
        metadata = {"Date": None} if path.suffix == ".svg" else {"Software": None}
        figure.savefig(file, format=path.suffix[1:], metadata=metadata)


def parse_arguments(description: str) -> argparse.Namespace:
    """Return the arguments that all studies take."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data/dsb2018"), metavar="DIR", help="default: %(default)s")
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="DIR", help="default: pipeline/studies/results")
    parser.add_argument(
        "--scratch", type=Path, default=Path(".resume/studies"), metavar="DIR", help="kept between calls; %(default)s"
    )
    parser.add_argument("--threads", type=_natural, default=2, metavar="N", help="of a training; default: %(default)s")
    parser.add_argument(
        "--steps", type=_natural, metavar="N", help="of a training; default: what pipeline/conf/study says"
    )
    return parser.parse_args()


def overrides_of(arguments: argparse.Namespace) -> list[str]:
    """Return what the arguments change in the parameters."""
    steps = [f"train.steps_per_epoch={arguments.steps}"] if arguments.steps else []
    return [f"train.threads={arguments.threads}", *steps]


def _natural(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number above 0")
    return int(text)
