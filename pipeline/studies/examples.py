"""Few training examples: the score of a held-out fold against the number of images that a network learnt from.

`make study-examples` trains the default network on 5, 10, 20, 40, 80, 160 and all images of four fifths of
stage1_train, and again without augmentation, without skip connections, and without ImageNet weights: one factor at a
time. It writes to `results/`: examples.csv and examples.svg.

All trainings have equally many steps, and so see equally many crops: with few images the same ones come again and
again. A curve therefore says what more images are worth, not what more training is worth; with equal epochs a network
of 5 images would be trained for a hundredth of the time, and one could not tell the two apart. The smaller sets are
parts of the larger ones, and all settings see the same images.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import nn

from pipeline.errors import one_line_errors
from pipeline.experiments.statistics import bootstrap_interval, paired_bootstrap
from pipeline.folds.table import FoldedSplit
from pipeline.folds.training import Edit
from pipeline.params import EvaluateParams, Params
from pipeline.studies.study import (
    choose_scores,
    compose,
    count_images,
    halve,
    keep_figure,
    keep_scores,
    keep_table,
    load_data,
    overrides_of,
    parse_arguments,
    train_network,
)
from pipeline.unet.model import NormalizedUNet

COUNTS = (5, 10, 20, 40, 80, 160)  # and all
FOLD = 0
# How often the sets are drawn; all images need no drawing. Every draw more takes as long again.
DRAWS = 1


@dataclass(frozen=True)
class Setting:
    """One factor taken away: what it changes in the parameters, or in the network."""

    overrides: tuple[str, ...] = ()
    edit: Edit | None = None


def cut_skips(model: NormalizedUNet) -> None:
    """Make the decoder of an SMP U-Net see zeros in place of the encoder's maps; its weights stay as many."""

    def blind(_block: nn.Module, inputs: tuple[Any, ...], keywords: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        feature_map, height, width, skip = (*inputs, *keywords.values())
        return (feature_map, height, width, None if skip is None else torch.zeros_like(skip)), {}

    for block in model.net.get_submodule("decoder.blocks").children():
        block.register_forward_pre_hook(blind, with_kwargs=True)


SETTINGS = {
    "default": Setting(),
    "no augmentation": Setting(("augment=none",)),
    "no skip connections": Setting(edit=cut_skips),
    "no ImageNet weights": Setting(("unet.weights=null",)),
}


def choose_images(table: pd.DataFrame, count: int, draw: int) -> pd.DataFrame:
    """Return `count` random rows of a table, in its order; of one draw, smaller sets are parts of larger ones."""
    order = np.random.default_rng((2018, draw)).permutation(len(table))
    return table.iloc[np.sort(order[:count])]


def score_point(name: str, params: Params, data: FoldedSplit, count: int, draw: int, scratch: Path) -> pd.DataFrame:
    """Return image_id, group, fold and ap of the held-out fold, by a network of one setting and one set of images.

    Each half of the fold is scored by the decoding that the other half chose.
    """
    outside, inside = data.outside(FOLD), data.inside(FOLD)
    chosen = outside.select(choose_images(outside.table, count, draw)["image_id"])
    network = train_network(f"{name}, {count} images, draw {draw}", params, chosen, FOLD, scratch, SETTINGS[name].edit)
    held_out = data.images[data.images["fold"] == FOLD]

    def score() -> list[float]:
        return choose_scores(count_images(network, inside, params), halve(held_out["group"]))

    return keep_scores([network], params, held_out, scratch, score)


def summarize(scores: dict[tuple[str, int, int], pd.DataFrame], evaluate: EvaluateParams) -> pd.DataFrame:
    """Return a row per setting and number of images: mean over draws, interval, and difference from the default.

    The draws of a number are averaged image by image, and the intervals resample the groups of held-out images: they
    say how far the score is known, and the lowest and highest draw how far it depends on which images were drawn.
    """
    rows = []
    for name in SETTINGS:
        for count in sorted({count for setting, count, _ in scores if setting == name}):
            draws = {draw: table for (s, c, draw), table in scores.items() if (s, c) == (name, count)}
            group = draws[0]["group"]
            mean = pd.concat([table["ap"] for table in draws.values()], axis=1).mean(axis=1)
            low, high = bootstrap_interval(mean, group, evaluate.bootstrap, evaluate.seed)
            row = {"setting": name, "images": count, "ap": mean.mean(), "low": low, "high": high}
            means = [float(table["ap"].mean()) for table in draws.values()]
            row |= {"draws": len(draws), "lowest_draw": min(means), "highest_draw": max(means)}
            theirs = pd.concat([scores["default", count, draw]["ap"] for draw in draws], axis=1).mean(axis=1)
            paired = paired_bootstrap(theirs, mean, group, evaluate.bootstrap, evaluate.seed)
            row |= dict(zip(("difference", "difference_low", "difference_high"), paired, strict=True))
            rows.append(row)
    return pd.DataFrame(rows)


def plot(table: pd.DataFrame, steps: int) -> Figure:
    """Draw the scores, and beside them the paired differences from the default, with 95 % intervals."""
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    panels = (("ap", "low", "high"), ("difference", "difference_low", "difference_high"))
    titles = (f"mAP of the held-out fold after {steps} steps", "difference from the default, image by image")
    for axes, columns, title in zip(figure.subplots(1, 2), panels, titles, strict=True):
        for number, (name, curve) in enumerate(table.groupby("setting", sort=False)):
            if name == "default" and columns is panels[1]:
                axes.axhline(0, color=f"C{number}", linewidth=1)
                continue
            value, low, high = (curve[column] for column in columns)
            # Side by side: the intervals of one number would hide one another.
            axes.errorbar(
                curve["images"] * 1.04**number, value, yerr=(value - low, high - value), label=name, color=f"C{number}",
                marker="o", markersize=4, capsize=2, linewidth=1.2,
            )  # fmt: skip
        axes.set(xscale="log", xlabel="training images", title=title)
        counts = sorted(table["images"].unique())
        axes.set_xticks(counts, [str(count) for count in counts])
        axes.minorticks_off()
        axes.grid(alpha=0.25)
        axes.legend(fontsize=8)
    return figure


def main() -> None:
    arguments = parse_arguments(__doc__ or "")
    overrides, scratch = overrides_of(arguments), arguments.scratch
    params = {name: compose("examples", [*overrides, *setting.overrides]) for name, setting in SETTINGS.items()}
    default = params["default"]
    data = load_data(arguments.data, scratch, default)
    total = len(data.outside(FOLD))
    scores: dict[tuple[str, int, int], pd.DataFrame] = {}
    for draw in range(DRAWS):
        for count in [*(count for count in COUNTS if count < total), *([] if draw else [total])]:
            for name in SETTINGS:
                scores[name, count, draw] = score_point(name, params[name], data, count, draw, scratch)
                print(f"{name}, {count} images, draw {draw}: {scores[name, count, draw]['ap'].mean():.3f}", flush=True)
        # After every draw, so that a study that is stopped has results.
        steps, table = default.train.steps_per_epoch, summarize(scores, default.evaluate)
        keep_table(arguments.out / "examples.csv", table.assign(steps=steps))
        keep_figure(arguments.out / "examples.svg", plot(table, steps))
    print(table.to_string(index=False, float_format=lambda value: f"{value:.3f}"))


if __name__ == "__main__":
    with one_line_errors():
        main()
