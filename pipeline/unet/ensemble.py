"""Networks and views whose probabilities are averaged. In: a batch of images in [0, 1]. Out: the mean probabilities."""

from collections.abc import Sequence

import torch
from torch import Tensor

from pipeline.errors import InputError
from pipeline.unet.blocks import LengthRule
from pipeline.unet.model import NormalizedUNet
from pipeline.unet.runtime import Runtime
from pipeline.unet.views import View


class Ensemble:
    """Some networks, each seeing a batch in each of some views.

    Args:
        models: built by one `unet`; they are moved to where they run and set to `eval`.
        views: at least one.
        runtime: where the networks run, and how.

    Raises:
        InputError: there is no network, or they take different lengths.
    """

    def __init__(self, models: Sequence[NormalizedUNet], views: Sequence[View], runtime: Runtime) -> None:
        if not models or any(model.lengths != models[0].lengths for model in models):
            raise InputError(f"{len(models)} networks to predict with; give at least one, all built by one `unet`")
        self.lengths: LengthRule = models[0].lengths
        self.device = runtime.device
        self.views = views
        self._runtime = runtime
        self._models = [model.to(runtime.device).to(memory_format=runtime.memory_format).eval() for model in models]

    def predict(self, x: Tensor) -> Tensor:
        """Return the mean probabilities (B, 3, h, w) float32 for `x` (B, 3, H, W), RGB in [0, 1], on the device.

        Views of one shape go through the networks together.
        """
        seen = [view.apply(x) for view in self.views]
        outputs = []
        # One context for all: autocast keeps the weights it has cast until the context ends.
        with self._runtime.autocast():
            for shape in dict.fromkeys(turned.shape for turned in seen):
                group = [(view, turned) for view, turned in zip(self.views, seen, strict=True) if turned.shape == shape]
                batch = torch.cat([turned for _, turned in group]).contiguous(memory_format=self._runtime.memory_format)
                mean = sum(model(batch).float().sigmoid() for model in self._models) / len(self._models)
                outputs += [view.invert(part) for (view, _), part in zip(group, mean.split(len(x)), strict=True)]
        return torch.stack(outputs).mean(dim=0)
