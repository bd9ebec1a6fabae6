"""The score of the held-out fold while a network trains: to be looked at, and for nothing else.

It selects nothing, so no stage's result depends on this module.
"""

import pandas as pd

from pipeline.images.contrast import apply_contrast, find_contrast
from pipeline.images.store import Pack
from pipeline.nuclei.decoding import Decoding, decode_instances
from pipeline.nuclei.metric import score
from pipeline.params import DecodeParams, Params
from pipeline.unet.model import NormalizedUNet
from pipeline.unet.predict import predict_images


def middle_decoding(params: DecodeParams) -> Decoding:
    """Return the middle of the values that `evaluate` searches."""
    fields = ("seed_threshold", "boundary_weight", "mask_threshold", "min_area_px")
    return Decoding(**{name: values[len(values) // 2] for name in fields for values in [getattr(params, name)]})


class HeldOutWatch:
    """Scores some held-out images every few epochs: one view at the native size, decoding parameters unsearched."""

    def __init__(self, pack: Pack, table: pd.DataFrame, params: Params) -> None:
        count = min(len(table), params.train.score_images)
        self._ids = table["image_id"].sample(count, random_state=params.train.seed).tolist()
        self._pack, self._params = pack, params
        self._predict = params.predict.model_copy(update={"views": "identity", "scales": (1.0,)})

    def __call__(self, model: NormalizedUNet, step: int) -> dict[str, float]:
        """Return {"val_map": mean score in [0, 1]}, or NaN in an epoch that takes no look."""
        train = self._params.train
        epoch = step // train.steps_per_epoch
        if not train.score_every_epochs or (epoch % train.score_every_epochs and epoch != train.epochs):
            return {"val_map": float("nan")}
        images = ((image_id, self._pack[f"{image_id}.image"]) for image_id in self._ids)
        stretched = (
            (name, apply_contrast(image, find_contrast(image, self._params.contrast))) for name, image in images
        )
        decoding = middle_decoding(self._params.decode)
        device = next(model.parameters()).device
        predictions = predict_images([model], stretched, self._predict, device, train.precision, train.channels_last)
        scores = [
            score(self._pack[f"{name}.label_map"], decode_instances(probabilities, decoding))
            for name, probabilities in predictions
        ]
        return {"val_map": sum(scores) / len(scores)}
