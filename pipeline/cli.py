"""The commands for people: `python -m pipeline COMMAND`. Thin: arguments to calls, and an `InputError` to one line.

Each command imports what it needs when it is called, so that `--help` answers at once.
"""

import argparse
import io
import sys
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from pipeline.errors import InputError, one_line_errors

UNETS = sorted(path.stem for path in (Path(__file__).parent / "conf" / "unet").glob("*.yaml"))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command that `arguments` (default: the command line) name."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a file's name may be no text in the stream's encoding
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
    fetch.add_argument(
        "source",
        metavar="SOURCE",
        help="fixes, bbbc038, kaggle, or a file or folder that holds the zips, unpacked or not",
    )
    fetch.add_argument("--to", type=Path, default=Path("data/dsb2018"), metavar="DIR", help="default: %(default)s")
    fetch.set_defaults(call=_fetch)

    pack = commands.add_parser(
        "pack", help="write the prepared training images as one small file, for a machine that has nothing else"
    )
    pack.add_argument(
        "--out", type=Path, default=Path("data/packed/train.zip"), metavar="FILE", help="ZIP; default: %(default)s"
    )
    pack.set_defaults(call=_pack)

    show = commands.add_parser("show", help="draw what training sees by params.yaml, with the true outlines of nuclei")
    show.add_argument("what", choices=("batch",), help="augmented tiles, as a batch of training has them")
    show.add_argument("--out", type=Path, default=BATCH, metavar="FILE", help="PNG; default: %(default)s")
    show.add_argument("--tiles", type=int, metavar="N", help="how many; default: train.batch")
    show.add_argument("--seed", type=int, metavar="N", help="another one draws others; default: train.seed")
    show.set_defaults(call=_show)
    for command in (pack, show):
        command.add_argument(
            "--prepared", type=Path, default=TRAIN, metavar="DIR", help="what `prepare` wrote; default: %(default)s"
        )

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
    predict.add_argument("images", type=Path, nargs="+", metavar="IMAGE", help="PNG, JPEG or TIFF")
    predict.add_argument("--out", type=Path, required=True, metavar="DIR", help="where label maps and tables go")
    predict.add_argument(
        "--run", type=Path, default=Path(), metavar="DIR", help="checkout of a trained run; default: the current folder"
    )
    predict.add_argument(
        "--channel",
        type=int,
        metavar="N",
        help="of files with several channels, take this one alone, counted from 0",
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
TRAIN, BATCH = Path("data/prepared/train"), Path("data/batch.png")


def _fetch(arguments: argparse.Namespace) -> None:
    from pipeline.kaggle.fetch import fetch

    for file in fetch(arguments.source, arguments.to):
        print(f"{file.path}  sha256 {file.sha256}  {'fetched' if file.new else 'already there'}")


def _pack(arguments: argparse.Namespace) -> None:
    from pipeline.images.packed import write_packed
    from pipeline.params import load_params

    images = write_packed(arguments.prepared, arguments.out, load_params(PARAMS).housekeeping.workers)
    print(f"{arguments.out}: {images} images, {arguments.out.stat().st_size / 1e6:.1f} MB")


def _show(arguments: argparse.Namespace) -> None:
    from pipeline.experiments.batch import write_sheet
    from pipeline.params import load_params

    recipe = load_params(PARAMS).recipe
    count = recipe.train.batch if arguments.tiles is None else arguments.tiles
    seed = recipe.train.seed if arguments.seed is None else arguments.seed
    write_sheet(arguments.out, arguments.prepared, recipe, count, seed)
    print(f"{arguments.out}: {count} tiles of {recipe.train.crop_px} px, seed {seed}")


def _summary(_: argparse.Namespace) -> None:
    from pipeline.experiments.evaluation import format_fold_table
    from pipeline.experiments.ledger import CARD, read_local_card
    from pipeline.experiments.runs import read_scores
    from pipeline.files import read_json

    if not (SUBMISSIONS / CARD).is_file():
        raise InputError(f"{SUBMISSIONS / CARD}: no finished run here; `make repro` makes one")
    cv = read_json(FOLDS / "cv.json")
    print(format_fold_table(read_scores(FOLDS / "scores.csv"), cv))
    if "v_rand" in cv:
        from pipeline.experiments.membranes import format_membranes

        print(format_membranes(cv))
    card = read_local_card(SUBMISSIONS) | read_json(SUBMISSIONS / CARD)
    print(
        f"expected on the test set: {card['expected_lb']:.3f} "
        f"({card['expected_lb_low']:.3f} .. {card['expected_lb_high']:.3f})"
        + ("" if card["lb_map"] is None else f"; scored {card['lb_map']:.4f}")
    )
    if card["wall_s"] is not None:
        revision = "" if card["revision"] is None else f", at revision {card['revision']}"
        print(f"made in {card['wall_s'] / 60:.0f} min on {card['device']}{revision}")
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


def _score(arguments: argparse.Namespace) -> None:
    from pipeline.nuclei.solution import read_solution, score_submission
    from pipeline.nuclei.submission import read_submission

    result = score_submission(read_submission(arguments.submission), read_solution(arguments.solution))
    if arguments.images:
        print(result.table.to_csv(index=False, float_format="%.6f", lineterminator="\n"), end="")
    others = f"; {result.not_scored} others are not scored" if result.not_scored else ""
    print(f"mAP {result.mean:.6f} over {len(result.table)} images{others}")


def _check(arguments: argparse.Namespace) -> None:
    from pipeline.images.prepare import read_sizes
    from pipeline.nuclei.submission import read_submission
    from pipeline.params import load_params

    if not arguments.images.exists():
        raise InputError(
            f"{arguments.images}: no such archive; name the one whose images the submission is of by --images, "
            "data/sample/stage1_test.zip say"
        )
    sizes = read_sizes(arguments.images, load_params(PARAMS).housekeeping.max_pixels)
    submission = read_submission(arguments.submission)
    submission.check(sizes)
    print(f"{arguments.submission}: valid; {submission.count_nuclei()} nuclei in {len(sizes)} images")


def _predict(arguments: argparse.Namespace) -> None:
    from tqdm import tqdm

    from pipeline.params import load_params
    from pipeline.predict.paths import check_out, check_run, choose_images
    from pipeline.predict.segment import load_segmenter, segment_files

    folds = arguments.run / FOLDS
    check_run(folds)
    images = choose_images(arguments.images, arguments.out)
    check_out(arguments.out)
    params = load_params(arguments.run / PARAMS)
    segmenter = load_segmenter(folds, params.folds.ids, params.recipe, params.predict, params.select)
    # On a terminal, above the bar.
    say = tqdm.write if sys.stderr.isatty() else print
    for path, count in segment_files(images, arguments.out, segmenter, params.housekeeping, arguments.channel):
        say(f"{path}: {count} nuclei")
        sys.stdout.flush()


def _describe(arguments: argparse.Namespace) -> None:
    from pipeline.experiments.drawing import draw_network
    from pipeline.files import write_text
    from pipeline.params import load_params
    from pipeline.unet.describe import describe_network, format_stages
    from pipeline.unet.model import build_model

    if arguments.unet:
        from pipeline.compose import compose_params

        unet = compose_params([f"unet={arguments.unet}"]).unet
    else:
        unet = load_params(PARAMS).unet
    model = build_model(unet, pretrained=False)
    fitting_px = model.lengths.input_for(256 - 2 * model.margin_px)
    tile_px = fitting_px if arguments.tile_px is None else arguments.tile_px
    stages = describe_network(model, tile_px)
    print(format_stages(stages))
    if arguments.svg:
        write_text(arguments.svg, draw_network(stages, f"{model.title}: a tile of {tile_px} px"))
        print(f"drawn in {arguments.svg}")


def _stack(arguments: argparse.Namespace) -> None:
    from pipeline.experiments.membranes import write_stack
    from pipeline.params import load_params

    params, folds = load_params(arguments.run / PARAMS), arguments.run / FOLDS
    pages, height, width = write_stack(arguments.out, params.targets, params.folds.ids, folds)
    print(f"{arguments.out}: {pages} pages of {height} x {width} px")


def _keep(arguments: argparse.Namespace) -> None:
    from pipeline.experiments.ledger import CARD, LEDGER, LOCAL_CARD, keep_run
    from pipeline.files import read_json

    kept = keep_run(arguments.name, SUBMISSIONS, FOLDS)
    print(f"kept in {kept}; its row is in {SUBMISSIONS / LEDGER}")
    if read_json(kept / CARD)["device"] is None:
        print(f"{SUBMISSIONS / LOCAL_CARD}: not of this run, so its wall time, device and revision are not known")


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
