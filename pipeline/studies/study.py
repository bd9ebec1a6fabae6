"""What the studies share: their data, one short training, and the score of images that it never saw.

In: an archive folder and parameters. Out: networks, and a score for every held-out image. Whatever was trained or
scored is kept in a scratch folder under a fingerprint of all that decides it: a study that was interrupted goes on.
"""

import argparse
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
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
from pipeline.nuclei.metric import average_precision
from pipeline.nuclei.tuning import candidates, count_image, cross_fit, score_candidates
from pipeline.params import Params, load_params
from pipeline.stages import folds as folds_stage
from pipeline.stages import prepare as prepare_stage
from pipeline.stages.train import load_batches, make_preparation, make_trainer
from pipeline.unet.checkpoint import Checkpoint, fingerprint
from pipeline.unet.model import NormalizedUNet
from pipeline.unet.runtime import configure_torch
from pipeline.unet.training import train_model
from pipeline.unet.weights import load_weights, save_weights

RESULTS = Path(__file__).parent / "results"
# Held-out images are seen once, at the zoom of their true size: a study is about the network, not about what is
# around it. Few decodings to choose from, for the same reason.
ONE_LOOK = (
    "predict.views=identity", "predict.scales=[1.0]", "housekeeping.score_every_epochs=0",
    "decode.seed_threshold=[0.5,0.7]", "decode.boundary_weight=[1.0]", "decode.mask_threshold=[0.5,0.65,0.8]",
    "decode.min_area_px=[20]", "data.test=none", "data.solution=none",
)  # fmt: skip

# Changes a network that was built, before its first step and after its weights were loaded.
Edit = Callable[[NormalizedUNet], None]


@dataclass(frozen=True)
class Data:
    """A prepared data set: its pack, and its table with the columns `group` and `fold` of its fold table."""

    pack: Pack
    table: pd.DataFrame
    digest: str

    def split(self, fold: int) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Return the rows of the images outside of `fold`, and of those in it."""
        is_val = self.table["fold"] == fold
        return self.table[~is_val], self.table[is_val]


def compose(scratch: Path, overrides: Sequence[str]) -> Params:
    """Return the parameters that `pipeline/conf` and overrides in the form of `dvc exp run -S` make."""
    scratch.mkdir(parents=True, exist_ok=True)
    path = scratch / "params.yaml"
    conf = Path(str(pipeline.__file__)).parent / "conf"
    compose_and_dump(path, str(conf), None, "config", [], [*ONE_LOOK, *overrides])
    return load_params(path)


def load_data(archives: Path, scratch: Path, params: Params) -> Data:
    """Prepare the archives and their folds, unless that was done, and return the data.

    Raises:
        InputError: there is no training archive, or it is damaged.
    """
    archive = archives / params.data.train
    if not archive.is_file():
        raise InputError(
            f"{archive}: no such archive; `python -m pipeline fetch fixes` gets it, or name its folder: data=DIR"
        )
    key = fingerprint({"archive": sha256_of(archive), "params": [params.data.model_dump(), params.folds.model_dump()]})
    folder = scratch / f"data-{key[:12]}"
    if not (folder / "folds.csv").is_file():
        prepare_stage.main(archives, folder / "train", folder / "test", params)
        folds_stage.main(folder / "train", folder, params)
    folds = read_folds(folder / "folds.csv")[["image_id", "group", "fold"]]
    table = read_table(folder / "train").merge(folds, on="image_id")
    return Data(Pack(folder / "train" / "images.npz"), table, key)


def train_network(
    name: str, params: Params, data: Data, table: pd.DataFrame, fold: int, scratch: Path, edit: Edit | None = None
) -> NormalizedUNet:
    """Return a network trained on the images of `table`, ready to predict; the one of an earlier call, if there is one.

    Args:
        name: for the progress bar and, with `edit`, for the fingerprint.
        params: all parameters; the schedule is `train`.
        data: where the images are.
        table: rows of its table.
        fold: whose seed is used.
        scratch: where checkpoints and weights are kept.
        edit: what is done to the network beside what `params` say; `name` must tell it.
    """
    sections = ("contrast", "unet", "targets", "loss", "augment", "train")
    parts: dict[str, Any] = {section: getattr(params, section).model_dump() for section in sections}
    parts |= {"data": data.digest, "images": table["image_id"].tolist(), "fold": fold, "edit": name if edit else ""}
    key = fingerprint(parts)[:16]
    path = scratch / "networks" / f"{key}.safetensors"
    if not path.is_file():
        configure_torch(params.train.threads)
        trainer = make_trainer(fold, params)
        if edit:
            edit(trainer.model)
            edit(trainer.ema)
        checkpoint = Checkpoint(scratch / "checkpoints" / key)
        train_model(
            trainer,
            lambda step: load_batches(data.pack, table, trainer, params, step),
            make_preparation(params, trainer.model.margin_px),
            checkpoint,
            lambda _model, _step: {},
            params.housekeeping.checkpoint_every_s,
            name,
        )
        save_weights(trainer.ema, path, {"name": name})
        shutil.rmtree(checkpoint.folder, ignore_errors=True)
    model = load_weights(path, params.unet)[0]
    if edit:
        edit(model)
    return model


def score_images(model: NormalizedUNet, data: Data, table: pd.DataFrame, params: Params) -> pd.DataFrame:
    """Return image_id, group and ap of held-out images, each half scored by the decoding that the other half chose."""
    counts = count_images(model, data, table, params)
    return table[["image_id", "group"]].assign(ap=choose_scores(counts, halve(table["group"]))).reset_index(drop=True)


def choose_scores(counts: Sequence[Sequence[Any]], parts: np.ndarray) -> list[float]:
    """Return the AP of each image by the decoding that images of the other parts chose.

    Args:
        counts: for each image the matches of each candidate.
        parts: (n,) integers, the part of each image.
    """
    fit = cross_fit(score_candidates(counts), parts)
    chosen = [fit.on_others[part] for part in parts.tolist()]
    return [float(average_precision(image[choice]).mean()) for image, choice in zip(counts, chosen, strict=True)]


def count_images(model: NormalizedUNet, data: Data, table: pd.DataFrame, params: Params) -> list[list[Any]]:
    """Return the matches of each image with each candidate of `params.decode`, seen once at its true size."""
    zooms = base_zooms(table["median_area_px"].to_numpy(np.float64), params.train.object_diameter_px)
    zoom_of = dict(zip(table["image_id"], zooms.tolist(), strict=True))
    images = ((name, data.pack[f"{name}.image"]) for name in table["image_id"])
    choices = candidates(params.decode)
    return [
        count_image(probabilities[0], data.pack[f"{name}.label_map"], choices)
        for name, probabilities, _ in predict_at([model], images, params, lambda name, _: zoom_of[name])
    ]


def halve(groups: pd.Series) -> np.ndarray:
    """Return 0 or 1 for each image: two halves that split no group, filled from the largest group down."""
    part_of: dict[str, int] = {}
    filled = [0, 0]
    for group, size in groups.value_counts().sort_index().sort_values(ascending=False, kind="stable").items():
        part_of[str(group)] = part = int(filled[1] < filled[0])
        filled[part] += int(size)
    return groups.map(part_of).to_numpy()


def keep_table(path: Path, table: pd.DataFrame) -> None:
    """Write a table as CSV, atomically."""
    write_text(path, table.to_csv(index=False, lineterminator="\n"))


def keep_figure(path: Path, figure: Any) -> None:
    """Write a figure of matplotlib, atomically and the same bytes for the same figure."""
    with atomic_path(path) as partial, partial.open("wb") as file:
        metadata = {"Date": None} if path.suffix == ".svg" else {"Software": None}
        figure.savefig(file, format=path.suffix[1:], metadata=metadata)


def parse_arguments(description: str) -> argparse.Namespace:
    """Return the arguments that all studies take."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data/dsb2018"), metavar="DIR", help="default: %(default)s")
    parser.add_argument("--scratch", type=Path, default=Path(".resume/studies"), metavar="DIR", help="what is kept "
                        "between calls; default: %(default)s")  # fmt: skip
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="DIR", help="results; default: %(default)s")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads of a training; default: %(default)s")
    parser.add_argument("--steps", type=int, default=None, help="of each training; default: the study's own")
    return parser.parse_args()
