"""Finished runs: `summary`, `compare`, `stack`, `keep`, `restore`, `upload`."""

import argparse
from pathlib import Path, PurePosixPath

from pipeline.commands.command import FOLDS, PARAMS, SUBMISSIONS, Commands
from pipeline.errors import InputError


def add_commands(commands: Commands) -> None:
    """Add the parsers of these commands."""
    summary = commands.add_parser("summary", help="print the fold table of the current run, and where its results are")
    summary.set_defaults(call=_summary)

    compare = commands.add_parser("compare", help="fold scores of runs side by side, with a verdict")
    compare.add_argument(
        "runs",
        nargs="*",
        metavar="REV|EXPERIMENT|NAME|PATH",
        help="git revisions, DVC experiments, kept runs, or folders or CSVs of scores; the others are compared with "
        "the first; a single one is compared with the current run",
    )
    compare.add_argument("--by", choices=("cv", "unseen"), default="cv", help="held-out folds, or unseen acquisitions")
    compare.set_defaults(call=_compare)

    stack = commands.add_parser(
        "stack", help="write a stack's out-of-fold probabilities as a TIFF, as ISBI 2012 took it"
    )
    stack.add_argument("--out", type=Path, required=True, metavar="FILE", help="TIFF: 1 inside of a cell, 0 membrane")
    stack.add_argument(
        "--run", type=Path, default=Path(), metavar="DIR", help="checkout of the run; default: the current folder"
    )
    stack.set_defaults(call=_stack)

    keep = commands.add_parser("keep", help="keep the current run under a name, with a row in the ledger")
    keep.add_argument("name", metavar="NAME")
    keep.set_defaults(call=_keep)

    restore = commands.add_parser(
        "restore", help="bring a kept run's networks and predictions back, from DVC's cache or its remote"
    )
    restore.add_argument("name", metavar="NAME", help="a kept run; see `keep`")
    restore.set_defaults(call=_restore)

    upload = commands.add_parser("upload", help="submit a kept run to Kaggle and wait for its score")
    upload.add_argument("name", metavar="NAME", help="a kept run; see `keep`")
    upload.add_argument("--timeout-s", type=float, default=900.0, help="how long to wait; default: %(default)s")
    upload.set_defaults(call=_upload)


def _summary(_: argparse.Namespace) -> None:
    from pipeline.experiments.evaluation import format_fold_table
    from pipeline.experiments.ledger import CARD, read_local_card
    from pipeline.experiments.runs import read_scores
    from pipeline.files import read_json

    if not (SUBMISSIONS / CARD).is_file():
        raise InputError(f"{SUBMISSIONS / CARD}: no finished run here; `make repro` makes one")
    cv = read_json(FOLDS / "cv.json")
    print(format_fold_table(read_scores(FOLDS / "scores.csv"), cv))
    if "members" in cv:
        from pipeline.experiments.members import format_members

        print(format_members(cv))
    if "v_rand" in cv:
        from pipeline.experiments.membranes import format_membranes

        print(format_membranes(cv))
    card = read_local_card(SUBMISSIONS) | read_json(SUBMISSIONS / CARD)
    print(
        f"expected on the test set: {card['expected_lb']:.3f} "
        f"({card['expected_lb_low']:.3f} .. {card['expected_lb_high']:.3f})"
        + ("" if card["lb_map"] is None else f"; scored {card['lb_map']:.3f}")
    )
    if card["wall_s"] is not None:
        revision = "" if card["revision"] is None else f", at revision {card['revision']}"
        print(f"stages took {card['wall_s'] / 60:.0f} min on {card['device']}{revision}")
    print(f"submission: {SUBMISSIONS / 'submission.csv'}\nreport:     {SUBMISSIONS / 'report.html'}")


def _compare(arguments: argparse.Namespace) -> None:
    from pipeline.experiments.comparisons import COMPARISONS
    from pipeline.experiments.runs import load_run
    from pipeline.params import load_params

    names: list[str | None] = list(arguments.runs)
    if len(names) < 2:
        names = [*(names or ["HEAD"]), None]
    where = Path(), PurePosixPath("folds/scores.csv"), PurePosixPath("submissions")
    runs = {name or "current": load_run(name, *where) for name in names}
    print(COMPARISONS[arguments.by](runs, load_params(PARAMS).evaluate))


def _stack(arguments: argparse.Namespace) -> None:
    from pipeline.experiments.membranes import write_stack
    from pipeline.params import load_params

    params, folds = load_params(arguments.run / PARAMS), arguments.run / FOLDS
    pages, height, width = write_stack(arguments.out, params.targets, params.member_ids, params.folds.ids, folds)
    print(f"{arguments.out}: {pages} pages of {height} x {width} px")


def _keep(arguments: argparse.Namespace) -> None:
    from pipeline.commands.kept import NETWORKS, OTHERS
    from pipeline.engine.contents import list_contents, push_contents
    from pipeline.engine.work import list_work
    from pipeline.experiments.ledger import CARD, LEDGER, LOCAL_CARD, keep_run
    from pipeline.files import read_json
    from pipeline.params import load_params

    params = load_params(PARAMS)
    folds, shares = list_work(params.member_ids, params.folds, params.data)
    forbidding = [name for name, source in params.data.sources.items() if not source.ship]
    tops = OTHERS if forbidding else (*NETWORKS, *OTHERS)
    contents = list_contents([*folds.targets(folds.items), *shares.targets(shares.items), "evaluate"], tops)
    kept = keep_run(arguments.name, SUBMISSIONS, FOLDS, (PARAMS, FOLDS / "decoding.json"), contents)
    print(f"kept in {kept}; its row is in {SUBMISSIONS / LEDGER}")
    if forbidding:
        print(f"without its networks: `ship` is false of {', '.join(forbidding)}")
    remote, lacking = push_contents(contents)
    if lacking or not contents:
        print("DVC's cache has not all of it here: `restore` needs the machine that made it, or its remote")
    elif remote:
        print(f"{len(contents)} files are in DVC's cache and on its remote {remote}")
    else:
        print(f"{len(contents)} files are in DVC's cache, here alone: no remote is configured (`dvc remote add -d`)")
    if read_json(kept / CARD)["device"] is None:
        print(f"{SUBMISSIONS / LOCAL_CARD}: not of this run, so its wall time, device and revision are not known")


def _restore(arguments: argparse.Namespace) -> None:
    from pipeline.commands.kept import NETWORKS, OTHERS, lay_out
    from pipeline.engine.contents import fetch_contents, list_contents
    from pipeline.engine.work import list_work
    from pipeline.experiments.ledger import CONTENTS
    from pipeline.files import read_json
    from pipeline.params import load_params

    root, name = lay_out(arguments.name), arguments.name
    print(f"{root}: the run as a checkout; `predict --run {name}` takes it from there")
    # What this checkout lacks, and its dvc.lock names the same, comes back to its own place.
    params = load_params(PARAMS)
    works = list_work(params.member_ids, params.folds, params.data)
    stages = [target for work in works for target in work.targets(work.items)]
    own = list_contents([*stages, "evaluate"], (*NETWORKS, *OTHERS))
    kept = read_json(SUBMISSIONS / name / CONTENTS)
    gone = {file: md5 for file, md5 in own.items() if kept.get(file) == md5 and not Path(file).exists()}
    if back := fetch_contents(gone, Path()):
        print(f"{len(back)} files that were missing here are back, {back[0]} say")


def _upload(arguments: argparse.Namespace) -> None:
    from pipeline.experiments.ledger import CARD, describe_run, kept_file, set_leaderboard_score
    from pipeline.files import read_json, sha256_of
    from pipeline.kaggle.upload import upload_submission

    name, file = arguments.name, kept_file(arguments.name, SUBMISSIONS, "submission.csv")
    description = describe_run(name, read_json(kept_file(name, SUBMISSIONS, CARD)), sha256_of(file))
    found = upload_submission(file, description, arguments.timeout_s, poll_s=15.0)
    if found.map is not None:
        set_leaderboard_score(name, found.map, SUBMISSIONS)
    print(f"{name}: leaderboard score {found.map}; noted in {SUBMISSIONS / 'ledger.csv'}")
