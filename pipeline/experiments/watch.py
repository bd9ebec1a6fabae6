"""The score of the held-out fold while a network trains: to be looked at, and for nothing else.

It selects nothing, so no stage's result depends on this module.
"""

import numpy as np
import pandas as pd

from pipeline.experiments.inference import predict_at
from pipeline.images.dataset import base_zooms
from pipeline.images.store import Pack
from pipeline.nuclei.decoding import average_zooms, decode_instances
from pipeline.nuclei.metric import score
from pipeline.nuclei.tuning import middle_candidate
from pipeline.params import Params
from pipeline.unet.model import NormalizedUNet


class HeldOutWatch:
    """Scores some held-out images every few epochs: one view, decoding parameters unsearched, their true size given."""

    def __init__(self, pack: Pack, table: pd.DataFrame, params: Params) -> None:
        count = min(len(table), params.housekeeping.score_images)
        zooms = base_zooms(table["median_area_px"].to_numpy(np.float64), params.train.object_diameter_px)
        self._zooms = dict(zip(table["image_id"], zooms.tolist(), strict=True))
        self._ids = table["image_id"].sample(count, random_state=params.train.seed).tolist()
        self._pack = pack
        one_view = params.predict.model_copy(update={"views": "identity", "scales": (1.0,)})
        self._params = params.model_copy(update={"predict": one_view})

    def __call__(self, model: NormalizedUNet, step: int) -> dict[str, float]:
        """Return {"val_map": mean score in [0, 1]}, or NaN in an epoch that takes no look."""
        train, every = self._params.train, self._params.housekeeping.score_every_epochs
        epoch = step // train.steps_per_epoch
        if not every or (epoch % every and epoch != train.epochs):
            return {"val_map": float("nan")}
        images = ((image_id, self._pack[f"{image_id}.image"]) for image_id in self._ids)
        decoding = middle_candidate(self._params.decode)
        scores = [
            score(self._pack[f"{name}.label_map"], decode_instances(average_zooms(probabilities), decoding))
            for name, probabilities, _ in predict_at(
                [model], images, self._params, lambda image_id, _: self._zooms[image_id]
            )
        ]
        return {"val_map": sum(scores) / len(scores)}
