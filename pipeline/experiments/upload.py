"""Hand a kept run in at kaggle.com, and wait for its score.

In: a kept run's name. Out: its score, in its run card and in the ledger. What was uploaded is known by its
description, which holds the run's name, its CV and the digest of its submission.csv: so an upload that was
interrupted, or whose score took too long, is waited for and not repeated.
"""

import csv
import io
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import InputError
from pipeline.experiments.ledger import CARD, kept_file, read_json, set_leaderboard_score
from pipeline.files import sha256_of
from pipeline.images.kaggle import COMPETITION, run_kaggle
from pipeline.progress import track


@dataclass(frozen=True)
class LeaderboardScore:
    """What kaggle gives: None where it shows no such score. The ledger takes the public one, else the private one."""

    public: float | None
    private: float | None

    @property
    def map(self) -> float | None:
        """The score for the ledger."""
        return self.private if self.public is None else self.public


def upload_submission(name: str, submissions: Path, timeout_s: float, poll_s: float) -> LeaderboardScore:
    """Upload the kept run `name`, wait for its score, and write that to its run card and the ledger.

    Args:
        name: of a kept run.
        submissions: the folder of the kept runs.
        timeout_s: how long to wait for the score.
        poll_s: the pause between two looks.

    Raises:
        InputError: no such kept run, no client or credentials, kaggle refuses the file, or no score comes in time.
    """
    card = read_json(kept_file(name, submissions, CARD))
    file = kept_file(name, submissions, "submission.csv")
    description = describe_run(name, card, sha256_of(file))
    uploads = list_uploads(description)
    failed = [upload for upload in uploads if upload["status"] == "error"]
    if len(failed) == len(uploads):
        arguments = ("-c", COMPETITION, "-f", str(file), "-m", description)
        answer = run_kaggle("competitions", "submit", *arguments, progress=True)
        if "could not submit" in answer.lower():  # the client has exited with 0 here
            raise InputError(f"{file}: kaggle: {answer.strip().splitlines()[-1]}; mend what it says and upload again")
    score = _await_score(name, description, len(failed), timeout_s, poll_s)
    if score.map is not None:
        set_leaderboard_score(name, score.map, submissions)
    return score


def describe_run(name: str, card: dict[str, Any], digest: str) -> str:
    """Return the description of a run's upload: its name, its CV, its expected score, the digest of its file."""
    expected = card.get("expected_lb")
    hope = "" if expected is None else f", expected {expected:.3f}"
    return f"{name}: CV {card['cv_map']:.4f} +- {card['cv_std']:.4f}{hope} ({digest[:12]})"


def list_uploads(description: str) -> list[dict[str, str]]:
    """Return kaggle's rows of the uploads with this description, newest first, `status` in plain lower case.

    Raises:
        InputError: no client or credentials, or the client's table is not understood.
    """
    lines = run_kaggle("competitions", "submissions", "-c", COMPETITION, "-v").splitlines()
    # The client prints advice about its own version above the table, and a sentence where there is no upload yet.
    head = next((i for i, line in enumerate(lines) if "publicScore" in line), None)
    if head is None:
        if any("no submissions found" in line.lower() for line in lines):
            return []
        raise InputError(
            f"kaggle competitions submissions: no column publicScore in {' '.join(lines)[:200]!r}; "
            "update the client (`pip install -U kaggle`)"
        )
    rows = csv.DictReader(io.StringIO("\n".join(lines[head:])))
    # Some clients write `SubmissionStatus.COMPLETE`, others `complete`.
    return [
        {**row, "status": row["status"].rpartition(".")[2].lower()} for row in rows if row["description"] == description
    ]


def _await_score(name: str, description: str, failed: int, timeout_s: float, poll_s: float) -> LeaderboardScore:
    """Look every `poll_s` until the upload is scored; `failed` uploads of this description had failed before."""
    for look in track(range(math.ceil(timeout_s / poll_s) + 1), "waiting for the score", unit="look"):
        if look:
            time.sleep(poll_s)
        uploads = list_uploads(description)
        scored = [upload for upload in uploads if upload["status"] == "complete"]
        if scored:
            score = LeaderboardScore(_parse_score(scored[0]["publicScore"]), _parse_score(scored[0]["privateScore"]))
            if score.map is None:
                raise InputError(f"{name}: kaggle took the file and shows no score; look at {_page()}")
            return score
        if sum(upload["status"] == "error" for upload in uploads) > failed:
            raise InputError(f"{name}: kaggle could not score the file; {_page()} says why")
    raise InputError(
        f"{name}: uploaded, but not scored within {timeout_s:.0f} s; run the same command later, which uploads nothing "
        "again and takes the score"
    )


def _page() -> str:
    return f"https://www.kaggle.com/competitions/{COMPETITION}/submissions"


def _parse_score(text: str) -> float | None:
    """Return the number in kaggle's cell, None where it is empty or a word."""
    try:
        score = float(text)
    except ValueError:
        return None
    return score if math.isfinite(score) else None
