"""`make bench`: run the benchmarks, and write what they found to results.json and results.md, and the README's table.

`make bench only="rle scoring"` runs some and keeps the others' results. They run on the full stage1_train where
data/dsb2018 has it (`python -m pipeline fetch`), otherwise on the embedded sample, and the results say which. Some need
the weights of `make repro`.
"""

import argparse
import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from pipeline.provenance import digest_code
from tests.benchmarks.harness import ROOT, Setting, describe_machine

# In the order of the table. Each module has `run(setting) -> Report`.
BENCHMARKS = (
    "training", "augmentation", "scoring", "decoding", "rle", "prepare", "prediction", "dvc_share", "peers",
    "profile", "operators", "scaling", "busy", "folds", "ray",
)  # fmt: skip
NEED_WEIGHTS = {"peers", "profile", "scaling"}
RESULTS = Path(__file__).with_name("results.json")
README = ROOT / "README.md"
SHOWN = ("1b", "1c", "3a", "5", "6a", "7", "8", "9a", "9d")  # the rows of its table
MARKS = "<!-- by make bench -->\n", "<!-- to here -->"
SCRATCH = ROOT / ".resume" / "bench"


def prepare_data(archives: Path) -> Path:
    """Return the folder of what `prepare` makes of the archives, made once by the same code."""
    prepared = SCRATCH / f"prepared-{archives.name}-{digest_code('pipeline.stages.prepare')[:8]}"
    if not (prepared / "test" / "images.npz").is_file():
        params = ROOT / "params.yaml"
        command = ["-m", "pipeline.stages", "prepare", "--archives", archives, "--train-out", prepared / "train"]
        command += ["--test-out", prepared / "test", "--params", params]
        subprocess.run([sys.executable, *map(str, command)], check=True, cwd=ROOT)
    return prepared


# What no benchmark here times.
ON_A_GPU = """\
## On a GPU

`make gpu` asks it; what it said last, if any did, is in [../gpu/results.md](../gpu/results.md).
"""


def render(results: dict[str, Any]) -> str:
    """Return results.md."""
    known = [(name, results[name]) for name in BENCHMARKS if name in results]
    lines = [
        "# Benchmarks",
        "",
        "Made by `make bench`; a row again by `make bench only=NAME`. Both sides of a row do the same work in one",
        "process, in turns, but in row 11, whose other side is published; a ratio is the median over neighbouring",
        "runs, with its range: theirs over ours, or what the row says.",
        "",
        "| # | what | against | reached | target | ours | theirs | `make bench only=` |",
        "|---|---|---|---|---|---|---|---|",
    ]
    rows = [(row, name) for name, report in known for row in report["rows"]]
    for row, name in sorted(rows, key=lambda pair: int(pair[0]["number"].rstrip("abcdefgh"))):
        cells = [row[key] for key in ("number", "what", "against", "value", "target", "ours", "theirs")]
        lines.append("| " + " | ".join([*cells, name]) + " |")
    notes = [(row["number"], row["note"]) for row, _ in rows if row["note"]]
    lines += ["", *(f"- **{number}**: {note}" for number, note in notes)]
    for name, report in known:
        for table in report["tables"]:
            lines += ["", f"## {table['title']}", "", f"`make bench only={name}`", ""]
            lines += ["| " + " | ".join(table["header"]) + " |", "|" + "---|" * len(table["header"])]
            lines += ["| " + " | ".join(row) + " |" for row in table["rows"]]
            lines += ["", table["note"]] if table["note"] else []
    lines += ["", ON_A_GPU, "## Where and when", ""]
    lines += [f"- {name}: {report['data']}; {report['machine']}" for name, report in known]
    return "\n".join(lines) + "\n"


def show(readme: str, results: dict[str, Any]) -> str:
    """Return the README's text with the rows that are SHOWN between its MARKS."""
    lines = ["| what | against | times as fast | target |", "|---|---|---|---|"]
    rows = {row["number"]: row for report in results.values() for row in report["rows"]}
    for row in (rows[number] for number in SHOWN if number in rows):
        lines.append("| " + " | ".join(row[key] for key in ("what", "against", "value", "target")) + " |")
    before, rest = readme.split(MARKS[0])
    return before + MARKS[0] + "\n" + "\n".join(lines) + "\n\n" + MARKS[1] + rest.split(MARKS[1])[1]


def keep(name: str, report: dict[str, Any]) -> None:
    """Put one benchmark's findings in the place of its last ones."""
    results = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else {}
    results[name] = report
    RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    RESULTS.with_suffix(".md").write_text(render(results), encoding="utf-8")
    README.write_text(show(README.read_text(encoding="utf-8"), results), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("only", nargs="*", metavar="NAME", help=f"of {', '.join(BENCHMARKS)}; all by default")
    full = ROOT / "data" / "dsb2018"
    parser.add_argument("--archives", type=Path, default=full if full.is_dir() else ROOT / "data" / "sample")
    parser.add_argument("--runs", type=int, default=5, help="timed runs of each side")
    arguments = parser.parse_args()
    unknown = set(arguments.only) - set(BENCHMARKS)
    if unknown:
        parser.error(f"no benchmark is called {', '.join(sorted(unknown))}; choose from {', '.join(BENCHMARKS)}")
    needing = sorted(NEED_WEIGHTS & set(arguments.only or BENCHMARKS))
    if needing and not (ROOT / "folds" / "weights").is_dir():
        parser.error(f"{', '.join(needing)}: no trained run to measure; make one with `make repro`")
    SCRATCH.mkdir(parents=True, exist_ok=True)
    setting = Setting(arguments.archives, prepare_data(arguments.archives), arguments.runs, SCRATCH)
    names = arguments.only or BENCHMARKS
    if len(names) > 1:
        # Each in a process of its own: what one leaves in memory, allocator and threads is not another's.
        options = ["--archives", str(arguments.archives), "--runs", str(arguments.runs)]
        for name in names:
            subprocess.run([sys.executable, "-m", "tests.benchmarks", name, *options], check=True, cwd=ROOT)
        return
    for name in names:
        print(f"== {name}", flush=True)
        report = importlib.import_module(f"tests.benchmarks.{name}").run(setting).as_dict()
        for row in report["rows"]:
            print(f"{row['number']}: {row['what']} against {row['against']}: {row['value']} (target {row['target']})")
        for table in report["tables"]:
            print(table["title"], *(" | ".join(row) for row in [table["header"], *table["rows"]]), sep="\n  ")
        keep(name, {**report, "data": f"data/{arguments.archives.name}", "machine": describe_machine()})


if __name__ == "__main__":
    main()
