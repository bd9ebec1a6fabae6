"""Hand a submission in at kaggle.com, and wait for its score.

In: a CSV and a description. Out: its score. What was uploaded is known by its description: so an upload that was
interrupted, or whose score took too long, is waited for and not repeated.
"""

import csv
import io
import math
import time
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import InputError, shorten
from pipeline.kaggle.client import COMPETITION, run_kaggle
from pipeline.progress import track


@dataclass(frozen=True)
class LeaderboardScore:
    """What kaggle gives: None where it shows no such score."""

    public: float | None
    private: float | None

    @property
    def map(self) -> float | None:
        """The one score that counts: the public one, else the private one."""
        return self.private if self.public is None else self.public


def upload_submission(file: Path, description: str, timeout_s: float, poll_s: float) -> LeaderboardScore:
    """Upload a submission, wait for its score, and return it.

    Args:
        file: the CSV.
        description: what the upload is known by; hold in it a digest of the file.
        timeout_s: how long to wait for the score.
        poll_s: the pause between two looks.

    Raises:
        InputError: no client or credentials, kaggle refuses the file, or no score comes in time.
    """
    uploads = list_uploads(description)
    failed = [upload for upload in uploads if upload["status"] == "error"]
    if len(failed) == len(uploads):
        arguments = ("-c", COMPETITION, "-f", str(file), "-m", description)
        answer = run_kaggle("competitions", "submit", *arguments, progress=True)
        if "could not submit" in answer.lower():  # the client has exited with 0 here
            raise InputError(f"{file}: kaggle: {answer.strip().splitlines()[-1]}; mend what it says and upload again")
    return _await_score(file, description, len(failed), timeout_s, poll_s)


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
            f"kaggle competitions submissions: no column publicScore in {shorten(' '.join(lines))!r}; "
            "update the client (`pip install -U kaggle`)"
        )
    rows = csv.DictReader(io.StringIO("\n".join(lines[head:])))
    # Some clients write `SubmissionStatus.COMPLETE`, others `complete`.
    return [
        {**row, "status": row["status"].rpartition(".")[2].lower()} for row in rows if row["description"] == description
    ]


def _await_score(file: Path, description: str, failed: int, timeout_s: float, poll_s: float) -> LeaderboardScore:
    """Look every `poll_s` until the upload is scored; `failed` uploads of this description had failed before."""
    for look in track(range(math.ceil(timeout_s / poll_s) + 1), "waiting for the score", unit="look"):
        if look:
            time.sleep(poll_s)
        uploads = list_uploads(description)
        scored = [upload for upload in uploads if upload["status"] == "complete"]
        if scored:
            score = LeaderboardScore(_parse_score(scored[0]["publicScore"]), _parse_score(scored[0]["privateScore"]))
            if score.map is None:
                raise InputError(f"{file}: kaggle took the file and shows no score; look at {_page()}")
            return score
        if sum(upload["status"] == "error" for upload in uploads) > failed:
            raise InputError(f"{file}: kaggle could not score the file; {_page()} says why")
    raise InputError(
        f"{file}: uploaded, but not scored within {timeout_s:.0f} s; run the same command later, which uploads nothing "
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
