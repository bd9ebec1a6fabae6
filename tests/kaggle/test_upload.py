import json
import stat
import sys

import pytest

from pipeline.errors import InputError
from pipeline.kaggle.upload import LeaderboardScore, upload_submission

# A kaggle client: its state is a JSON file beside it, {"calls", "rows", "pending", "fate", ...}.
CLIENT = """#!{python}
import json, pathlib, sys
path = pathlib.Path(__file__).with_name("state.json")
state = json.loads(path.read_text())
arguments = sys.argv[1:]
state["calls"].append(arguments)
code = 0
if state["fate"] == "unauthorized":
    print("Could not find kaggle.json. Make sure it's located in ~/.kaggle", file=sys.stderr)
    code = 1
elif arguments[:2] == ["competitions", "submit"]:
    if state["fate"] == "refused":
        print("Could not submit to competition")
    else:
        state["rows"].insert(0, [arguments[arguments.index("-m") + 1], "pending", "", ""])
        print("Successfully submitted to 2018 Data Science Bowl")
else:
    print("Warning: Looks like you're using an outdated API Version, please consider updating")
    if state["rows"] and state["rows"][0][1] == "pending":
        if state["pending"] == 0:
            state["rows"][0][1:] = state["final"]
        state["pending"] -= 1
    if not state["rows"]:
        print("No submissions found")
    else:
        print("fileName,date,description,status,publicScore,privateScore")
        for row in state["rows"]:
            print("submission.csv,2018-04-01 00:00:00," + ",".join('"' + cell + '"' for cell in row))
path.write_text(json.dumps(state))
sys.exit(code)
"""


class Kaggle:
    def __init__(self, folder, monkeypatch):
        folder.mkdir()
        program = folder / "kaggle"
        program.write_text(CLIENT.format(python=sys.executable))
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("PATH", str(folder))
        self.path = folder / "state.json"
        final = ["SubmissionStatus.COMPLETE", "0.41", "0.39"]
        self.set(calls=[], rows=[], pending=1, fate="", final=final)

    @property
    def state(self):
        return json.loads(self.path.read_text())

    def set(self, **changes):
        self.path.write_text(json.dumps({**(self.state if self.path.exists() else {}), **changes}))

    @property
    def submits(self):
        return [call for call in self.state["calls"] if call[1] == "submit"]


@pytest.fixture
def kaggle(tmp_path, monkeypatch):
    return Kaggle(tmp_path / "bin", monkeypatch)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "submission.csv"
    path.write_text("ImageId,EncodedPixels\n")
    return path


def upload(file, description="best: CV 0.5 (0123)", timeout_s=1.0):
    return upload_submission(file, description, timeout_s, 0.01)


def test_the_file_goes_up_under_its_description_and_the_score_comes_down(kaggle, file):
    assert upload(file) == LeaderboardScore(0.41, 0.39)
    competition = ["-c", "data-science-bowl-2018"]
    assert kaggle.submits == [["competitions", "submit", *competition, "-f", str(file), "-m", "best: CV 0.5 (0123)"]]


@pytest.mark.parametrize(
    ("public", "private", "counts"), [("0.41", "0.39", 0.41), ("", "0.39", 0.39), ("0.4", "None", 0.4)]
)
def test_where_there_is_no_public_score_the_private_one_counts(kaggle, file, public, private, counts):
    kaggle.set(final=["complete", public, private])
    assert upload(file).map == counts


def test_a_score_that_takes_too_long_is_fetched_later_without_a_second_upload(kaggle, file):
    kaggle.set(pending=1000)
    with pytest.raises(InputError, match=r"submission\.csv: uploaded, but .* run the same command later"):
        upload(file, timeout_s=0.02)
    kaggle.set(pending=0)
    assert upload(file).public == 0.41
    assert len(kaggle.submits) == 1


def test_another_description_is_another_upload(kaggle, file):
    upload(file)
    kaggle.set(pending=0, final=["complete", "0.5", "0.5"])
    assert upload(file, "best: CV 0.5 (4567)").public == 0.5
    assert len(kaggle.submits) == 2


def test_a_file_that_kaggle_cannot_score_may_be_uploaded_again(kaggle, file):
    kaggle.set(final=["error", "", ""])
    with pytest.raises(InputError, match=r"submission\.csv: kaggle could not score the file"):
        upload(file)
    kaggle.set(pending=1, final=["complete", "0.4", "None"])
    assert upload(file) == LeaderboardScore(0.4, None)
    assert len(kaggle.submits) == 2


def test_refused_unauthorized_and_missing(kaggle, file, monkeypatch, tmp_path):
    kaggle.set(fate="refused")
    with pytest.raises(InputError, match="Could not submit"):
        upload(file)
    kaggle.set(fate="unauthorized")
    with pytest.raises(InputError, match=r"Could not find kaggle.json.*make a new API token"):
        upload(file)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(InputError, match="no such program"):
        upload(file)


def test_complete_without_any_score(kaggle, file):
    kaggle.set(final=["complete", "", ""])
    with pytest.raises(InputError, match="shows no score"):
        upload(file)
