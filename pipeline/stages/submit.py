"""submit: test predictions to a checked submission and its run card."""

from collections.abc import Sequence
from pathlib import Path

from pipeline.errors import InputError
from pipeline.experiments.expectation import expect_leaderboard
from pipeline.experiments.instances import find_nuclei, load_finder
from pipeline.experiments.run_card import make_run_card
from pipeline.experiments.runs import read_scores
from pipeline.files import read_json, write_json
from pipeline.images.store import Pack
from pipeline.images.table import read_table
from pipeline.nuclei.submission import read_solution, score_submission, validate_submission, write_submission
from pipeline.params import Params
from pipeline.progress import track
from pipeline.stages.run import read_seconds, run
from pipeline.unet.runtime import select_device
from pipeline.unet.weights import read_metadata


def main(
    archives: Path,
    trained: Path,
    prepared: Path,
    probabilities: Path,
    decoding: Path,
    candidates: Path,
    scores: Path,
    summary: Path,
    weights: Path,
    submission: Path,
    card: Path,
    journal: Path,
    params: Params,
) -> None:
    """Decode the test predictions, write and check the submission, and describe the run."""
    table = read_table(prepared)
    image_ids = table["image_id"].tolist()
    finder = load_finder(decoding, candidates, params)
    solution = find_solution(archives, image_ids, params)
    nuclei = find_nuclei(Pack(probabilities), image_ids, finder, params.decode.workers)
    write_submission(submission, track(nuclei, "submit", len(image_ids)))
    shapes = zip(table["height"].tolist(), table["width"].tolist(), strict=True)
    found = validate_submission(submission, dict(zip(image_ids, shapes, strict=True)))
    lb_map = score_submission(submission, solution).mean if solution else None
    weight_files = [weights / f"{fold}.safetensors" for fold in params.folds.ids]
    metadata = read_metadata(weight_files[0])
    content = make_run_card(
        params,
        read_json(summary),
        expect_leaderboard(read_scores(scores), read_table(trained), table, params.evaluate),
        lb_map,
        read_seconds(journal, params.folds.ids),
        str(select_device(params.train.device)),
        [archives / name for name in (params.data.train, params.data.labels, params.data.test, params.data.solution)]
        + [*weight_files, candidates],
        {key: metadata[key] for key in sorted(metadata) if key.startswith("encoder_")},
    )
    write_json(card, content)
    known = "" if lb_map is None else f", scores {lb_map:.4f}"
    print(f"{submission}: {found} nuclei in {len(image_ids)} images, valid{known}")


def find_solution(archives: Path, image_ids: Sequence[str], params: Params) -> Path | None:
    """Return the path of the test set's truth, or None where it is not known.

    Raises:
        InputError: it is the truth of other images.
    """
    path = archives / params.data.solution
    if not image_ids or params.data.solution == "none" or not path.is_file():
        return None
    strangers = sorted(read_solution(path).keys() - set(image_ids))
    if strangers:
        raise InputError(
            f"{path}: image {strangers[0]} is not in {params.data.test}; set data.solution to its own or none"
        )
    return path


if __name__ == "__main__":
    run(main)
