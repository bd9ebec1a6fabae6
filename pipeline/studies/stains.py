"""Ways to show stained images to a network that has learnt from none.

`python -m pipeline.studies.stains` trains one network, for 700 steps of 16 crops of 96 px, on the images outside fold 0
that are not stained, shows it every second stained image of all folds in each of WAYS, at its true size, decodes what
it finds by one setting, and writes results/stains.csv: the mean AP of each type and way. All ways are stretched alike.
The network is kept; a second call only predicts.
"""

from collections.abc import Callable

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline.diameter import zooms_to_size
from pipeline.errors import one_line_errors
from pipeline.folds.prediction import predict_at
from pipeline.images.contrast import to_densities
from pipeline.images.image_type import STAINED_TYPES
from pipeline.nuclei.decoding import decode_instances
from pipeline.nuclei.metric import average_precision, count_matches
from pipeline.nuclei.tuning import middle_decoding
from pipeline.params import ContrastParams
from pipeline.studies.study import RESULTS, compose, keep_table, load_data, make_parser, train_network
from pipeline.unet.runtime import start_runtime

FOLD = 0  # whose seed is used
EACH = 2  # every so manyth stained image is shown
STEPS = 700


def pale(kept: float) -> Callable[[NDArray[np.uint8]], NDArray[np.uint8]]:
    """Return what makes densities of which a share of the colours is kept."""

    def show(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        own = measure_densities(image)
        return to_bytes(kept * own + (1 - kept) * own.mean(axis=2, keepdims=True))

    return show


def measure_densities(image: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Return the optical density of each channel of an image (H, W, 3) uint8, 0 .. 2."""
    return np.minimum(-np.log(np.maximum(image, 1) / 255), 2)


def to_bytes(densities: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Return densities (H, W, 3) of 0 .. 2 as 0 .. 255."""
    return np.rint(densities * 127.5).astype(np.uint8)


# Each takes and gives an image (H, W, 3) uint8.
WAYS: dict[str, Callable[[NDArray[np.uint8]], NDArray[np.uint8]]] = {
    "as they are": lambda image: image,
    "inverted": lambda image: 255 - image,
    "density of red": lambda image: to_bytes(measure_densities(image)[..., :1].repeat(3, axis=2)),
    "density of green": lambda image: to_bytes(measure_densities(image)[..., 1:2].repeat(3, axis=2)),
    "density of blue": lambda image: to_bytes(measure_densities(image)[..., 2:].repeat(3, axis=2)),
    "mean of the three densities": pale(0.0),
    "densities, a quarter of their colours": pale(0.25),
    "densities, a third: what runs show": to_densities,
    "densities, half": pale(0.5),
    "densities in full colours": pale(1.0),
}


def main() -> None:
    arguments = make_parser(__doc__ or "").parse_args()
    schedule = [f"train.steps_per_epoch={STEPS}", "predict.scales=[1.0]"]
    params = compose("unseen", [f"runtime.threads={arguments.threads}", *schedule])
    folded = load_data(arguments.data, arguments.scratch, params)
    is_stained = folded.images["image_type"].isin(STAINED_TYPES)
    learnt = folded.split.select(folded.images.loc[~is_stained & (folded.images["fold"] != FOLD), "image_id"])
    network = train_network("stains", params, learnt, FOLD, arguments.scratch)
    stained = folded.split.select(folded.images.loc[is_stained, "image_id"].iloc[::EACH])
    zooms = dict(zip(stained.image_ids, zooms_to_size(stained.diameters_px, params.size).tolist(), strict=True))
    runtime, decoding = start_runtime(params.runtime), middle_decoding(params.decode)
    stretch = ContrastParams(stretch=True, density=False)
    rows = []
    for way, show in WAYS.items():
        shown = ((name, show(image)) for name, image in stained.images())
        predictions = predict_at([network.model], shown, lambda name, _: zooms[name], stretch, params.predict, runtime)
        found = {
            name: average_precision(
                count_matches(stained.label_map(name), decode_instances(probabilities[0], decoding))
            ).mean()
            for name, probabilities, _ in predictions
        }
        own = stained.table.assign(ap=stained.table["image_id"].map(found)).groupby("image_type")["ap"].mean()
        rows.append({"way": way, "images": len(found), **own.to_dict()})
        print(rows[-1], flush=True)
    keep_table(RESULTS / "stains.csv", pd.DataFrame(rows))


if __name__ == "__main__":
    with one_line_errors("stopped; run the same command to go on"):
        main()
