"""The score of the held-out fold while a network trains: to be looked at, and for nothing else.

It selects nothing, so no stage's result depends on this module.
"""

from pipeline.folds.prediction import predict_true_size
from pipeline.housekeeping import HousekeepingParams
from pipeline.images.splits import PreparedSplit
from pipeline.nuclei.decoding import average_zooms, decode_instances
from pipeline.nuclei.metric import score
from pipeline.nuclei.tuning import middle_decoding
from pipeline.params import DecodeParams, PredictParams, Recipe
from pipeline.unet.model import NormalizedUNet
from pipeline.unet.runtime import start_runtime


class HeldOutWatch:
    """Scores some held-out images every few epochs: one view, decoding parameters unsearched, their true size given."""

    def __init__(
        self,
        held_out: PreparedSplit,
        recipe: Recipe,
        predict: PredictParams,
        decode: DecodeParams,
        housekeeping: HousekeepingParams,
    ) -> None:
        count = min(len(held_out), housekeeping.score_images)
        shown = held_out.table["image_id"].sample(count, random_state=recipe.train.seed)
        self._split = held_out.select(shown)
        self._recipe, self._every = recipe, housekeeping.score_every_epochs
        self._predict = predict.model_copy(update={"views": "identity", "scales": (1.0,)})
        self._decoding = middle_decoding(decode)
        self._runtime = start_runtime(recipe.runtime)

    def __call__(self, model: NormalizedUNet, step: int) -> dict[str, float]:
        """Return {"val_map": mean score in [0, 1]}, or NaN in an epoch that takes no look."""
        train = self._recipe.train
        epoch = step // train.steps_per_epoch
        if not self._every or (epoch % self._every and epoch != train.epochs):
            return {"val_map": float("nan")}
        recipe = self._recipe
        predictions = predict_true_size(
            [model], self._split, recipe.contrast, recipe.size, self._predict, self._runtime
        )
        scores = [
            score(self._split.label_map(name), decode_instances(average_zooms(probabilities), self._decoding))
            for name, probabilities, _ in predictions
        ]
        return {"val_map": sum(scores) / len(scores)}
