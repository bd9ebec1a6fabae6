"""The commands for people: `python -m pipeline COMMAND`. Thin: arguments to calls, and an `InputError` to one line.

Each command imports what it needs when it is called, so that `--help` answers at once.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from pipeline.errors import InputError, one_line_errors

UNET_CONF = Path(__file__).parent / "conf" / "unet"
UNETS = sorted(path.stem for path in UNET_CONF.glob("*.yaml"))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command that `arguments` (default: the command line) name."""
    parsed = make_parser().parse_args(arguments)
    with one_line_errors():
        try:
            parsed.call(parsed)
        except BrokenPipeError:
            sys.stderr.close()  # the reader of a pipe, `head` say, has gone


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline",
        description="Nuclei of the 2018 Data Science Bowl: what people do around `dvc repro`.",
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    fetch = commands.add_parser("fetch", help="get the competition's archives")
    fetch.add_argument("source", metavar="SOURCE", help="fixes, bbbc038, kaggle, or a folder that holds the zips")
    fetch.add_argument("--to", type=Path, default=Path("data/dsb2018"), metavar="DIR", help="default: %(default)s")
    fetch.set_defaults(call=_fetch)

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
    compare.set_defaults(call=_compare)

    score = commands.add_parser("score", help="score a submission against a solution, as Kaggle does")
    score.add_argument("submission", type=Path, metavar="SUBMISSION", help="CSV: ImageId,EncodedPixels")
    score.add_argument("solution", type=Path, metavar="SOLUTION", help="CSV: ImageId,EncodedPixels,Height,Width,Usage")
    score.add_argument("--images", action="store_true", help="print a row per image too")
    score.set_defaults(call=_score)

    check = commands.add_parser("check", help="check that Kaggle will take a submission")
    check.add_argument("submission", type=Path, metavar="SUBMISSION", help="CSV: ImageId,EncodedPixels")
    check.add_argument("--images", type=Path, required=True, metavar="ZIP", help="the test archive")
    check.set_defaults(call=_check)

    predict = commands.add_parser("predict", help="find the nuclei in images of your own")
    predict.add_argument("images", type=Path, nargs="+", metavar="IMAGE", help="PNG, JPEG or TIFF, 8 or 16 bit")
    predict.add_argument("--out", type=Path, required=True, metavar="DIR", help="where label maps and tables go")
    predict.add_argument(
        "--run", type=Path, default=Path(), metavar="DIR", help="checkout of a trained run; default: the current folder"
    )
    predict.set_defaults(call=_predict)

    describe = commands.add_parser("describe", help="print the network of params.yaml as a table; draw it as an SVG")
    describe.add_argument("--tile-px", type=int, metavar="N", help="side of the tile; default: 256, or what fits next")
    describe.add_argument("--unet", choices=UNETS, help="one of pipeline/conf/unet; default: what params.yaml says")
    describe.add_argument("--svg", type=Path, metavar="FILE", help="where the drawing goes")
    describe.set_defaults(call=_describe)

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

    upload = commands.add_parser("upload", help="submit a kept run to Kaggle and wait for its score")
    upload.add_argument("name", metavar="NAME", help="a kept run; see `keep`")
    upload.add_argument("--timeout-s", type=float, default=900.0, help="how long to wait; default: %(default)s")
    upload.set_defaults(call=_upload)
    return parser


FOLDS, SUBMISSIONS, PARAMS = Path("folds"), Path("submissions"), Path("params.yaml")


def _fetch(arguments: argparse.Namespace) -> None:
    from pipeline.images.fetch import fetch

    for file in fetch(arguments.source, arguments.to):
        print(f"{file.path}  sha256 {file.sha256}  {'fetched' if file.new else 'already there'}")


def _summary(_: argparse.Namespace) -> None:
    from pipeline.experiments.evaluation import format_fold_table
    from pipeline.experiments.runs import read_scores
    from pipeline.files import read_json

    if not (SUBMISSIONS / "run.json").is_file():
        raise InputError(f"{SUBMISSIONS / 'run.json'}: no finished run here; `make repro` makes one")
    cv = read_json(FOLDS / "cv.json")
    print(format_fold_table(read_scores(FOLDS / "scores.csv"), cv))
    if "v_rand" in cv:
        from pipeline.experiments.membranes import format_membranes

        print(format_membranes(cv))
    card = read_json(SUBMISSIONS / "run.json")
    print(
        f"expected on the test set: {card['expected_lb']:.3f} "
        f"({card['expected_lb_low']:.3f} .. {card['expected_lb_high']:.3f})"
        + ("" if card["lb_map"] is None else f"; scored {card['lb_map']:.4f}")
    )
    print(f"submission: {SUBMISSIONS / 'submission.csv'}\nreport:     {SUBMISSIONS / 'report.html'}")


def _compare(arguments: argparse.Namespace) -> None:
    from pipeline.experiments.compare import compare_runs, format_comparison
    from pipeline.experiments.runs import load_scores
    from pipeline.params import load_params

    names: list[str | None] = list(arguments.runs)
    if len(names) < 2:
        names = [*(names or ["HEAD"]), None]
    frames = {
        name or "current": load_scores(name, Path(), PurePosixPath("folds/scores.csv"), PurePosixPath("submissions"))
        for name in names
    }
    print(format_comparison(compare_runs(frames, load_params(PARAMS).evaluate)))


def _score(arguments: argparse.Namespace) -> None:
    from pipeline.nuclei.submission import score_submission

    result = score_submission(arguments.submission, arguments.solution)
    if arguments.images:
        print(result.table.to_csv(index=False, float_format="%.6f", lineterminator="\n"), end="")
    others = f"; {result.not_scored} others are not scored" if result.not_scored else ""
    print(f"mAP {result.mean:.6f} over {len(result.table)} images{others}")


def _check(arguments: argparse.Namespace) -> None:
    from pipeline.images.prepare import read_sizes
    from pipeline.nuclei.submission import validate_submission
    from pipeline.params import load_params

    sizes = read_sizes(arguments.images, load_params(PARAMS).data.max_pixels)
    nuclei = validate_submission(arguments.submission, sizes)
    print(f"{arguments.submission}: valid; {nuclei} nuclei in {len(sizes)} images")


def _predict(arguments: argparse.Namespace) -> None:
    from pipeline.experiments.segment import segment_files

    run = arguments.run
    for path, count in segment_files(arguments.images, arguments.out, run / PARAMS, run / FOLDS):
        print(f"{path}: {count} nuclei")


def _describe(arguments: argparse.Namespace) -> None:
    from pipeline.experiments.drawing import draw_network
    from pipeline.files import read_yaml, write_text
    from pipeline.params import Params, load_params
    from pipeline.unet.describe import describe_network, format_stages
    from pipeline.unet.model import build_model

    params = load_params(PARAMS)
    if arguments.unet:
        params = Params.model_validate(params.model_dump() | {"unet": read_yaml(UNET_CONF / f"{arguments.unet}.yaml")})
    unet = params.unet
    model = build_model(unet, pretrained=False)
    fitting_px = model.sizes.input_for(256 - 2 * model.margin_px)
    tile_px = fitting_px if arguments.tile_px is None else arguments.tile_px
    stages = describe_network(model, tile_px)
    print(format_stages(stages))
    if arguments.svg:
        name = unet.encoder if unet.name == "smp" else f"vanilla U-Net, width {unet.width}, {unet.padding} padding"
        write_text(arguments.svg, draw_network(stages, f"{name}: a tile of {tile_px} px"))
        print(f"drawn in {arguments.svg}")


def _stack(arguments: argparse.Namespace) -> None:
    from pipeline.experiments.membranes import write_stack

    pages, height, width = write_stack(arguments.out, arguments.run / PARAMS, arguments.run / FOLDS)
    print(f"{arguments.out}: {pages} pages of {height} x {width} px")


def _keep(arguments: argparse.Namespace) -> None:
    from pipeline.experiments.ledger import keep_run

    print(f"kept in {keep_run(arguments.name, SUBMISSIONS, FOLDS)}; its row is in {SUBMISSIONS / 'ledger.csv'}")


def _upload(arguments: argparse.Namespace) -> None:
    from pipeline.experiments.upload import upload_submission

    found = upload_submission(arguments.name, SUBMISSIONS, arguments.timeout_s, poll_s=15.0)
    print(f"{arguments.name}: leaderboard score {found.map}; noted in {SUBMISSIONS / 'ledger.csv'}")
