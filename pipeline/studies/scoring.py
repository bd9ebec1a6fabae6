"""One measurement of the yardstick: a network learns without a cluster, and images are found by it and scored.

In: a `Case` and parameters. Out: a row per image, seen and scored, with its AP, how far off its size was read, and the
signals of how well its nuclei were found. The network, and what the seen images taught, are kept in a scratch folder
under a fingerprint of all that decides them: other images are scored by them without a training.
"""

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline.diameter import zooms_to_size
from pipeline.folds.candidate_store import CandidateStore, write_candidates
from pipeline.folds.finder import CandidateFinder, NucleusFinder, find_nuclei
from pipeline.folds.networks import Folds
from pipeline.folds.prediction import predict_estimated
from pipeline.folds.predictions import Predictions, write_predictions
from pipeline.folds.second_level import fit_second_level, rate_images
from pipeline.folds.sizes import learn_sizes
from pipeline.images.splits import NamedImage
from pipeline.nuclei.metric import average_precision, count_matches
from pipeline.nuclei.tuning import middle_decoding
from pipeline.params import Params
from pipeline.provenance import digest_code, fingerprint
from pipeline.studies.left_out import FOLD, Case
from pipeline.studies.probes import median_diameter
from pipeline.studies.study import Network, halve, keep_table, train_network
from pipeline.unet.checkpoint import locked_folder
from pipeline.unet.runtime import start_runtime
from pipeline.unet.size import load_reader, save_reader


def score_case(case: Case, params: Params, scratch: Path) -> pd.DataFrame:
    """Return image_id, is_seen, ap, octaves (how far off the size was) and signals of seen and scored images."""
    learnt = fingerprint({"images": case.learnt.image_ids, "recipe": params.recipe.describe()})
    network = train_network(f"unseen {learnt}", params, case.learnt, FOLD, scratch)
    parts: dict[str, Any] = {"network": network.key, "seen": case.seen.image_ids}
    parts |= {"params": params.model_dump(), "code": digest_code(__name__)}
    folder = scratch / "unseen" / fingerprint(parts)
    pixels = [hashlib.sha256(image.tobytes()).hexdigest() for image, _ in case.scored.values()]
    path = folder / f"{fingerprint({'scored': list(case.scored), 'pixels': pixels})}.csv"
    with locked_folder(folder):
        if not path.is_file():
            keep_table(path, _Finder(network, case, params, folder).score())
    return _read(path)


def _read(path: Path) -> pd.DataFrame:
    return pd.read_csv(path, dtype={"image_id": str})


class _Finder:
    """Finds the nuclei of a case's images, as a run does those of its test set, and scores them."""

    def __init__(self, network: Network, case: Case, params: Params, folder: Path) -> None:
        self._case, self._params, self._folder = case, params, folder
        self._runtime = start_runtime(params.runtime)
        self._model = network.model.to(self._runtime.device).eval()
        self._candidates = CandidateFinder(params.predict.scales, params.size.object_diameter_px, params.select)

    def score(self) -> pd.DataFrame:
        """Return a row per image, the seen ones first."""
        case, names, kept = self._case, self._case.seen.image_ids, self._folder / "seen.csv"
        if not kept.is_file():
            seen = self._look_at_seen()
            # In two halves, each found by what the other taught.
            halves = halve(pd.Series([case.groups[name] for name in names]))
            parts = [np.array(names)[halves == part].tolist() for part in (0, 1)]
            models = self._fit(*reversed(parts))
            rows = [row for part, model in zip(parts, models, strict=True) for row in self._find(seen, part, model)]
            keep_table(kept, pd.DataFrame(rows))
            (self._folder / "seen.npz").unlink()
        (model,) = self._fit(names)
        scored = self._predict("scored.npz", ((name, image) for name, (image, _) in case.scored.items()))
        rows = list(self._find(scored, list(case.scored), model))
        (self._folder / "scored.npz").unlink()
        return pd.concat([_read(kept), pd.DataFrame(rows)])

    def _fit(self, *parts: list[str]) -> list[Any]:
        """Return a second-level model of each list of seen images."""
        return fit_second_level(CandidateStore(self._folder / "candidates.npz"), parts, self._params.select)

    def _look_at_seen(self) -> Predictions:
        """Learn to read sizes, write the candidates of the seen images, and return their predictions."""
        params, learnt = self._params, self._case.learnt
        reader = learn_sizes(self._model, learnt, params.contrast, params.augment, params.size, self._runtime, "sizes")
        save_reader(reader, self._folder / "reader.safetensors")
        seen = self._predict("seen.npz", self._case.seen.images())
        rated = rate_images(seen, self._case.seen, self._candidates, params.housekeeping.workers)
        write_candidates(self._folder / "candidates.npz", rated)
        return seen

    def _predict(self, name: str, images: Iterable[NamedImage]) -> Predictions:
        params, path = self._params, self._folder / name
        folds = Folds([self._model], [load_reader(self._folder / "reader.safetensors")])
        predicted = predict_estimated(folds, images, params.contrast, params.size, params.predict, self._runtime)
        write_predictions(path, predicted)
        return Predictions([path])

    def _find(self, predictions: Predictions, names: list[str], model: Any) -> Iterator[dict[str, Any]]:
        params, case = self._params, self._case
        finder = NucleusFinder(middle_decoding(params.decode), model, self._candidates)
        for name, label_map, signals in find_nuclei(predictions, names, finder, params.housekeeping.workers):
            is_seen = name not in case.scored
            truth: NDArray[np.integer] = case.seen.label_map(name) if is_seen else case.scored[name][1]
            zoom = float(zooms_to_size(np.array([median_diameter(truth)]), params.size)[0])
            ap = float(average_precision(count_matches(truth, label_map)).mean())
            octaves = float(np.log2(predictions[name][1] / zoom))
            yield {"image_id": name, "is_seen": is_seen, "ap": ap, "octaves": octaves, **(signals or {})}
