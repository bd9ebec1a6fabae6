"""Few training examples: the score of a held-out fold against the number of images that a network learnt from.

`make study-examples` trains the default network on 5, 10, 20, 40, 80, 160 and all images of four fifths of
stage1_train, and again without augmentation, without skip connections, and without ImageNet weights: one factor at a
time. It writes to `results/`: examples.csv and examples.svg.

All trainings have equally many steps, and so see equally many crops: with few images the same ones come again and
again. A curve therefore says what more images are worth, not what more training is worth; with equal epochs a network
of 5 images would be trained for a hundredth of the time, and one could not tell the two apart. The smaller sets are
parts of the larger ones, and all settings see the same images.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import nn

from pipeline.experiments.statistics import bootstrap_interval, paired_bootstrap
from pipeline.params import Params
from pipeline.studies.study import (
    Data,
    compose,
    keep_figure,
    keep_table,
    load_data,
    parse_arguments,
    score_images,
    train_network,
)
from pipeline.unet.checkpoint import fingerprint
from pipeline.unet.model import NormalizedUNet

COUNTS = (5, 10, 20, 40, 80, 160, None)  # None is all
FOLD = 0
STEPS = 200
# How often the small sets are drawn anew; the largest needs no drawing.
DRAWS = 2


@dataclass(frozen=True)
class Setting:
    """One factor taken away: what it changes in the parameters, or in the network."""

    overrides: tuple[str, ...] = ()
    edit: Callable[[NormalizedUNet], None] | None = None


def cut_skips(model: NormalizedUNet) -> None:
    """Make the decoder of an SMP U-Net see zeros in place of the encoder's maps; its weights stay as many."""

    def blind(_block: nn.Module, inputs: tuple[Any, ...], keywords: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        feature_map, height, width, skip = (*inputs, *keywords.values())
        return (feature_map, height, width, None if skip is None else torch.zeros_like(skip)), {}

    for block in model.net.get_submodule("decoder.blocks").children():
        block.register_forward_pre_hook(blind, with_kwargs=True)


SETTINGS = {
    "default": Setting(),
    "no augmentation": Setting(("augment.backend=none",)),
    "no skip connections": Setting(edit=cut_skips),
    "no ImageNet weights": Setting(("unet.weights=none",)),
}


def choose_images(table: pd.DataFrame, count: int | None, draw: int) -> pd.DataFrame:
    """Return `count` random rows of a table (None: all); of one draw, smaller sets are parts of larger ones."""
    order = np.random.default_rng((2018, draw)).permutation(len(table))
    return table if count is None else table.iloc[np.sort(order[:count])]


def score_point(
    name: str, setting: Setting, params: Params, data: Data, count: int | None, draw: int, scratch: Path
) -> pd.DataFrame:
    """Return image_id, group and ap of the held-out fold, by a network of one setting and one set of images."""
    training, held_out = data.split(FOLD)
    chosen = choose_images(training, count, draw)
    point = {"name": name, "params": params.model_dump(), "data": data.digest, "images": chosen["image_id"].tolist()}
    path = scratch / "examples" / f"{fingerprint(point)[:16]}.csv"
    if not path.is_file():
        # The name stands in the fingerprint of the network where it is edited: one name for all sizes of a setting.
        model = train_network(name, params, data, chosen, FOLD, scratch, setting.edit)
        keep_table(path, score_images(model, data, held_out, params))
    return pd.read_csv(path, dtype={"image_id": str, "group": str})


def summarize(scores: dict[tuple[str, int, int], pd.DataFrame], params: Params) -> pd.DataFrame:
    """Return a row per setting and number of images: mean over draws, interval, and difference from the default.

    The intervals resample the groups of held-out images; the draws of a number are averaged image by image before.
    """
    rows = []
    evaluate = params.evaluate
    for name in SETTINGS:
        for count in sorted({count for setting, count, _ in scores if setting == name}):
            tables = {draw: table for (s, c, draw), table in scores.items() if (s, c) == (name, count)}
            # A draw that the default has not yet is not compared.
            common = [draw for draw in tables if ("default", count, draw) in scores]
            mean = sum(table["ap"] for table in tables.values()) / len(tables)
            group = next(iter(tables.values()))["group"]
            low, high = bootstrap_interval(mean, group, evaluate.bootstrap, evaluate.seed)
            row = {"setting": name, "images": count, "draws": len(tables), "ap": mean.mean(), "low": low, "high": high}
            row["lowest_draw"], row["highest_draw"] = (
                pick(table["ap"].mean() for table in tables.values()) for pick in (min, max)
            )
            if name != "default" and common:
                ours = sum(tables[draw]["ap"] for draw in common) / len(common)
                theirs = sum(scores["default", count, draw]["ap"] for draw in common) / len(common)
                paired = paired_bootstrap(theirs, ours, group, evaluate.bootstrap, evaluate.seed)
                row |= dict(zip(("difference", "difference_low", "difference_high"), paired, strict=True))
            rows.append(row)
    return pd.DataFrame(rows)


def plot(table: pd.DataFrame, steps: int) -> Figure:
    """Draw the curves with their intervals."""
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot(
        xlabel="training images",
        ylabel="mAP of the held-out fold",
        title=f"{steps} steps for every point",
        xscale="log",
    )
    for name, curve in table.groupby("setting", sort=False):
        (line,) = axes.plot(curve["images"], curve["ap"], marker="o", markersize=4, label=name)
        axes.fill_between(curve["images"], curve["low"], curve["high"], color=line.get_color(), alpha=0.12, linewidth=0)
    counts = sorted(table["images"].unique())
    axes.set_xticks(counts, [str(count) for count in counts])
    axes.minorticks_off()
    axes.legend()
    axes.grid(alpha=0.25)
    return figure


def main() -> None:
    arguments = parse_arguments(__doc__ or "")
    scratch, steps = arguments.scratch, arguments.steps or STEPS
    shared = [
        "data=full", "train=cpu", "train.epochs=1", f"train.steps_per_epoch={steps}", "train.crop_px=96",
        "train.start_crop_px=96", "train.tile_px=128", f"train.threads={arguments.threads}", "train.ema_decay=0.98",
    ]  # fmt: skip
    settings = {name: compose(scratch, [*shared, *setting.overrides]) for name, setting in SETTINGS.items()}
    data = load_data(arguments.data, scratch, settings["default"])
    total = len(data.split(FOLD)[0])
    scores = {}
    for draw in range(DRAWS):
        for count in COUNTS:
            for name, setting in SETTINGS.items():
                if draw and count is None:
                    continue
                key = (name, count or total, draw)
                scores[key] = score_point(name, setting, settings[name], data, count, draw, scratch)
                print(f"{name}, {key[1]} images, draw {draw}: {scores[key]['ap'].mean():.3f}", flush=True)
        # After every draw, so that a study that is stopped has results.
        table = summarize(scores, settings["default"])
        keep_table(arguments.out / "examples.csv", table.assign(steps=steps).round(4))
        keep_figure(arguments.out / "examples.svg", plot(table, steps))
    print(table.round(3).to_string(index=False))


if __name__ == "__main__":
    main()
