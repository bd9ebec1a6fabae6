"""Kept runs as members of one more: `blend`."""

import argparse
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.commands.command import FOLDS, PARAMS, SUBMISSIONS, TEST, TRAIN, Commands
from pipeline.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

    from pipeline.params import Params

BLENDS = Path(".resume/blends")


def add_commands(commands: Commands) -> None:
    """Add the parser of the command."""
    blend = commands.add_parser("blend", help="average kept runs, evaluate and submit what they say together, keep it")
    blend.add_argument("runs", nargs="+", metavar="RUN", help="kept runs; see `keep`")
    blend.add_argument("--name", required=True, metavar="NAME", help="of the run that is made of them")
    blend.add_argument(
        "--weights",
        choices=("equal", "greedy"),
        default="equal",
        help="how often each member counts: once, or as often as it helps out of fold; default: %(default)s",
    )
    blend.add_argument(
        "--mixed-folds",
        action="store_true",
        help="take runs of different fold tables too: what finds the nuclei of a fold of the first is then fitted on "
        "predictions by networks of the others that have learnt from that fold, so that the CV may flatter",
    )
    blend.set_defaults(call=_blend)


def _blend(arguments: argparse.Namespace) -> None:
    from pipeline.commands.kept import lay_out
    from pipeline.engine.contents import store_contents
    from pipeline.experiments.ledger import CARD, CONTENTS, LEDGER, check_new, keep_run
    from pipeline.files import read_json, sha256_of, write_json, write_text
    from pipeline.launch import settle_threads
    from pipeline.params import load_params
    from pipeline.yaml_files import format_yaml

    settle_threads()
    check_new(arguments.name, SUBMISSIONS)
    if len({*arguments.runs}) < len(arguments.runs):
        raise InputError(f"{' '.join(arguments.runs)}: each run may be named once; --weights greedy weighs them")
    roots = {name: lay_out(name, for_networks=True) for name in arguments.runs}
    params_of = {name: load_params(root / PARAMS) for name, root in roots.items()}
    check_alike(params_of)
    tables = {name: root / FOLDS / "folds.csv" for name, root in roots.items()}
    is_mixed = check_folds_alike(tables, arguments.mixed_folds)
    params, parts = join_params(params_of, arguments.weights)
    root = BLENDS / arguments.name
    shutil.rmtree(root, ignore_errors=True)
    folds, made = root / FOLDS, root / SUBMISSIONS
    write_text(root / PARAMS, format_yaml(params.model_dump(mode="json")))
    contents: dict[str, str] = {}
    for member, (run, own) in parts.items():
        of_run = read_json(SUBMISSIONS / run / CONTENTS)
        kinds = [FOLDS / "weights", FOLDS / "sizes", SUBMISSIONS / "probabilities"]
        if is_mixed:
            _deal_out(folds / "oof" / member, roots[run], own, params_of[run].folds.ids, roots[arguments.runs[0]])
            dealt = {f"{FOLDS}/oof/{member}/{path.name}": path for path in (folds / "oof" / member).glob("*.npz")}
            contents |= store_contents(dealt)
        else:
            kinds.append(FOLDS / "oof")
        for kind in kinds:
            _link(root / kind / member, roots[run] / kind / own)
            old, new = f"{kind}/{own}/", f"{kind}/{member}/"
            contents |= {new + each.removeprefix(old): md5 for each, md5 in of_run.items() if each.startswith(old)}
    shutil.copyfile(roots[arguments.runs[0]] / FOLDS / "folds.csv", folds / "folds.csv")
    _run_stages(folds, made, params)
    card = read_json(made / CARD) | {"parts": arguments.runs, "mixed_folds": is_mixed}
    write_json(made / CARD, card)
    local = read_json(made / "run.local.json") | {"run": sha256_of(made / CARD)}
    write_json(made / "run.local.json", local)
    names = ("trees.npz", "candidates.npz", "oof.csv", "signals.csv")
    contents |= store_contents({f"{FOLDS}/{name}": folds / name for name in names})
    kept = keep_run(arguments.name, SUBMISSIONS, folds, (root / PARAMS, folds / "decoding.json"), contents, made)
    print(f"kept in {kept}, of {', '.join(arguments.runs)}; its row is in {SUBMISSIONS / LEDGER}")


def check_alike(params_of: "Mapping[str, Params]") -> None:
    """Refuse runs whose predictions make no mean.

    Raises:
        InputError: they were asked for something else or at other zooms, or have other numbers of folds or shares.
    """
    (first, base), *others = params_of.items()
    for name, params in others:
        pairs = {
            "targets": (base.targets, params.targets),
            "predict.scales": (base.predict.scales, params.predict.scales),
            "folds.ids": (base.folds.ids, params.folds.ids),
            "data.test_shares": (base.data.test_shares, params.data.test_shares),
        }
        for what, (own, its) in pairs.items():
            if own != its:
                raise InputError(f"{name}: {what} is {its} and not {own}, as of {first}: they make no blend")


def check_folds_alike(tables: Mapping[str, Path], may_mix: bool) -> bool:
    """Return whether the runs' fold tables differ, and refuse those that do unless that is asked for.

    Raises:
        InputError: they are of other images, or differ and `--mixed-folds` was not given.
    """
    from pipeline.folds.table import read_folds

    (first, base), *others = ((name, _index(read_folds(path))) for name, path in tables.items())
    is_mixed = False
    for name, table in others:
        if odd := sorted({*base.index} ^ {*table.index}):
            raise InputError(f"{name} and {first} are of other images, {odd[0]} for one; blend runs on the same data")
        moved = int((base["fold"] != table.loc[base.index, "fold"]).sum())
        if moved and not may_mix:
            raise InputError(
                f"{name} and {first} have {moved} of {len(base)} images in other folds: what is held out in one was "
                "learnt from by the other's networks; --mixed-folds blends them all the same, and the CV may flatter"
            )
        is_mixed |= moved > 0
    if is_mixed:
        print(f"the fold tables differ; that of {first} is taken, and the CV may flatter", flush=True)
    return is_mixed


def _index(table: "pd.DataFrame") -> "pd.DataFrame":
    return table.set_index("image_id")


def join_params(params_of: "Mapping[str, Params]", weights: str) -> "tuple[Params, dict[str, tuple[str, str]]]":
    """Return the parameters of a run whose members are those of all runs, and of which run and member each is.

    All but members is as the first run has it.
    """
    from pipeline.members import CHANGEABLE

    base = next(iter(params_of.values()))
    parts, members = {}, {}
    for run, params in params_of.items():
        for own, member in params.of_members.items():
            name = re.sub(r"\W", "_", f"{run}_{own}", flags=re.ASCII)[:32]
            name = name if name[0].isalpha() else f"run_{name}"[:32]
            if name in parts:
                raise InputError(
                    f"{run}: its member {own} would be called {name}, as another's; keep it by another name"
                )
            content = member.model_dump(mode="json")
            parts[name], members[name] = (run, own), {section: content[section] for section in CHANGEABLE}
    changes = {"members": members, "member_ids": [*members], "ensemble": {"weights": weights}}
    return type(base).model_validate(base.model_dump(mode="json") | changes), parts


def _run_stages(folds: Path, made: Path, params: "Params") -> None:
    """Evaluate the members together, and submit what they say."""
    from pipeline.stages import evaluate, submit

    evaluate.main(
        prepared=TRAIN, folds=folds / "folds.csv", oof=folds / "oof", unseen=FOLDS / "unseen.csv",
        scores=folds / "scores.csv", summary=folds / "cv.json", decoding=folds / "decoding.json",
        candidates=folds / "candidates.npz", trees=folds / "trees.npz", nuclei=folds / "oof.csv",
        signals=folds / "signals.csv", params=params,
    )  # fmt: skip
    submit.main(
        archives=Path(params.data.dir), trained=TRAIN, prepared=TEST, probabilities=made / "probabilities",
        decoding=folds / "decoding.json", trees=folds / "trees.npz", scores=folds / "scores.csv",
        signals=folds / "signals.csv", known=FOLDS / "known.csv", summary=folds / "cv.json", weights=folds / "weights",
        submission=made / "submission.csv", expected=made / "expected.csv", card=made / "run.json",
        local=made / "run.local.json", journal=made / "journal", params=params,
    )  # fmt: skip


def _link(path: Path, target: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(target.resolve())


def _deal_out(out: Path, root: Path, member: str, ids: Sequence[int], first: Path) -> None:
    """Write a member's out-of-fold predictions by the folds of another run."""
    from pipeline.folds.predictions import Predictions, write_predictions
    from pipeline.folds.table import UNSCORED, read_folds
    from pipeline.unet.prediction import Prediction

    stored = Predictions(root / FOLDS / "oof" / member / f"{fold}.npz" for fold in ids)
    table = read_folds(first / FOLDS / "folds.csv")
    for fold, names in table[table["stratum"] != UNSCORED].groupby("fold")["image_id"]:
        write_predictions(out / f"{fold}.npz", (Prediction(name, *stored[name]) for name in names))
