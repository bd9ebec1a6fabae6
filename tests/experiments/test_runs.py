import shutil
import subprocess
from pathlib import PurePosixPath

import pytest

from pipeline.errors import InputError
from pipeline.experiments.runs import load_run, parse_scores

HEAD = "image_id,group,fold,image_type,ap\n"
SCORES = PurePosixPath("folds/scores.csv")
SUBMISSIONS = PurePosixPath("submissions")


def csv(ap):
    return f"{HEAD}b,g1,1,fluorescence,{ap}\na,g0,0,fluorescence,{ap}\n"


def git(root, *arguments):
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", "-C", str(root), *identity, *arguments], check=True, capture_output=True, text=True)
    return done.stdout.strip()


def commit(root, ap):
    (root / SCORES).write_text(csv(ap))
    git(root, "add", "-A")
    git(root, "commit", "-qm", f"scores {ap}")
    return git(root, "rev-parse", "HEAD")


@pytest.fixture
def root(tmp_path):
    """A repository: 0.1 at tag `old`, 0.2 on the branch, experiments 0.3 and 0.4, kept run 0.5, working tree 0.6."""
    root = tmp_path / "repository"
    (root / "folds").mkdir(parents=True)
    git(root, "init", "-q", "-b", "main")
    git(root, "commit", "-q", "--allow-empty", "-m", "nothing yet")
    git(root, "tag", "empty")
    commit(root, 0.1)
    git(root, "tag", "old")
    base = commit(root, 0.2)
    for name, ap in (("puffy-daks", 0.3), ("twin", 0.4)):
        git(root, "update-ref", f"refs/exps/{base[:2]}/{base[2:]}/{name}", commit(root, ap))
        git(root, "reset", "-q", "--hard", base)
    other = "0" * 40
    git(root, "update-ref", f"refs/exps/{other[:2]}/{other[2:]}/twin", git(root, "rev-parse", "old"))
    git(root, "update-ref", "refs/exps/exec/EXEC_HEAD", base)
    (root / "submissions" / "kept").mkdir(parents=True)
    (root / "submissions" / "kept" / "scores.csv").write_text(csv(0.5))
    (root / SCORES).write_text(csv(0.6))
    return root


def ap_of(root, name):
    return load_run(name, root, SCORES, SUBMISSIONS).scores["ap"].tolist()


@pytest.mark.parametrize(
    ("name", "ap"),
    [(None, 0.6), ("", 0.6), ("kept", 0.5), ("old", 0.1), ("main", 0.2), ("HEAD~1", 0.1), ("puffy-daks", 0.3)],
)
def test_each_kind_of_name(root, name, ap):
    assert ap_of(root, name) == [ap, ap]


def test_the_summary_lies_beside_the_scores(root):
    def summary(name):
        return load_run(name, root, SCORES, SUBMISSIONS).summary

    folder, kept = root / "folds", root / "submissions" / "kept"
    assert summary("HEAD") == summary("kept") == summary(None) == {}
    (folder / "cv.json").write_text('{"cv_map": 0.2}')
    commit(root, 0.2)
    git(root, "tag", "summed")
    (folder / "cv.json").write_text('{"cv_map": 0.6}')
    (kept / "cv.json").write_text('{"cv_map": 0.5}')
    assert [summary(name)["cv_map"] for name in ("summed", None, "kept", str(kept), str(kept / "scores.csv"))] == [
        0.2, 0.6, 0.5, 0.5, 0.5,
    ]  # fmt: skip
    assert summary("old") == {}
    for broken in ("{", "[]"):
        (folder / "cv.json").write_text(broken)
        git(root, "commit", "-qam", "broken")
        with pytest.raises(InputError, match=r"^HEAD: its cv\.json cannot be read as JSON"):
            summary("HEAD")
        with pytest.raises(InputError, match=r"cv\.json: .*JSON"):
            summary(None)


def test_paths_and_hashes(root):
    assert ap_of(root, str(root / "submissions" / "kept")) == [0.5, 0.5]
    assert ap_of(root, str(root / "submissions" / "kept" / "scores.csv")) == [0.5, 0.5]
    assert ap_of(root, git(root, "rev-parse", "old")[:12]) == [0.1, 0.1]


def test_a_kept_run_goes_before_a_branch_of_its_name(root):
    git(root, "branch", "kept", "old")
    assert ap_of(root, "kept") == [0.5, 0.5]
    assert ap_of(root, "refs/heads/kept") == [0.1, 0.1]


def test_the_repository_may_lie_in_a_folder_of_another(root, tmp_path):
    outer = tmp_path / "outer"
    (outer / "inner" / "folds").mkdir(parents=True)
    git(outer, "init", "-q")
    commit(outer / "inner", 0.7)
    assert ap_of(outer / "inner", "HEAD") == [0.7, 0.7]


def test_experiments_of_one_name_are_not_guessed_between(root):
    with pytest.raises(InputError, match="2 experiments have this name"):
        ap_of(root, "twin")


@pytest.mark.parametrize("name", ["nowhere", "EXEC_HEAD", "--all", "-h", "main; ls", "a\0b", "--output=x"])
def test_unknown_names_are_refused_and_never_options(root, name):
    with pytest.raises(InputError, match="no kept run, CSV, git revision or DVC experiment"):
        ap_of(root, name)
    assert not (root / "x").exists()


def test_a_revision_without_scores(root):
    with pytest.raises(InputError, match=r"empty: its commit \w+ has no folds/scores.csv"):
        ap_of(root, "empty")


def test_no_scores_yet(tmp_path):
    with pytest.raises(InputError, match="dvc repro"):
        ap_of(tmp_path, None)


def test_without_a_repository_git_is_quoted_and_kept_runs_are_read(root, monkeypatch):
    shutil.rmtree(root / ".git")
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(root.parent))  # the folders above may lie in one
    with pytest.raises(InputError, match=r"^'HEAD': no kept run .* fatal: not a git repository.*; name a kept run"):
        ap_of(root, "HEAD")
    assert ap_of(root, "kept") == [0.5, 0.5]
    assert ap_of(root, None) == [0.6, 0.6]


def test_a_repository_of_another_user_is_refused_in_git_s_words_with_git_s_cure(root, monkeypatch):
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    for name in ("GIT_CONFIG_GLOBAL", "GIT_CONFIG_SYSTEM"):  # which may trust all folders
        monkeypatch.setenv(name, "/dev/null")
    with pytest.raises(InputError, match=r"dubious ownership .* git config --global --add safe\.directory \S+; name"):
        ap_of(root, "HEAD")


def test_without_git_that_is_said(root, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match=r"^git: not found on PATH; name a kept run"):
        ap_of(root, "HEAD")
    assert ap_of(root, "kept") == [0.5, 0.5]


def test_a_shallow_clone_says_how_to_get_the_rest(root, tmp_path):
    git(tmp_path, "clone", "-q", "--depth", "1", f"file://{root}", "shallow")
    with pytest.raises(InputError, match=r"'HEAD~1': no kept run.*`git fetch --unshallow`"):
        ap_of(tmp_path / "shallow", "HEAD~1")
    with pytest.raises(InputError, match=r"'nowhere': no kept run(?!.*unshallow)"):
        ap_of(root, "nowhere")


def test_an_unpacked_download_in_another_s_repository_has_none_of_its_revisions(root, tmp_path):
    git(tmp_path, "init", "-q")
    git(tmp_path, "commit", "-q", "--allow-empty", "-m", "of another")
    shutil.rmtree(root / ".git")
    with pytest.raises(InputError, match=r"^HEAD: its commit \w+ has no folds/scores.csv \(fatal: path .*; name a rev"):
        ap_of(root, "HEAD")


def test_ids_that_look_like_numbers_stay_text():
    table = parse_scores(f"{HEAD}007,1,0,fluorescence,1\n006,2,1,fluorescence,0\n", "x")
    assert table["image_id"].tolist() == ["006", "007"]
    assert table["group"].tolist() == ["2", "1"]
    assert table["ap"].tolist() == [0.0, 1.0]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "not a readable table of scores"),
        ("image_id,ap\na,0.5\n", "no column 'group'"),
        (HEAD, "has no rows"),
        (f"{HEAD}a,g,0,t,0.5,0.5\n", "more values than columns"),
        (f"{HEAD}a,g,0,t,0.5\na,g,0,t,0.5\n", "image a has two rows"),
        (f"{HEAD}a,g,0,t,1.5\n", "image a: its ap"),
        (f"{HEAD}a,g,0,t,\n", "image 'a' has ap '', not a number"),
        (f"{HEAD}a,g,0,t,good\n", "image 'a' has ap 'good', not a number"),
        (f"{HEAD}a,g,0.5,t,0.5\n", "has fold '0.5', not a whole number"),
    ],
)
def test_faulty_tables(text, words):
    with pytest.raises(InputError, match=words):
        parse_scores(text, "scores.csv")
