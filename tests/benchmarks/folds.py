"""Row 13: two folds side by side, each a process of one thread, against one after another.

In a and b a fold is represented by steps of train=cpu in a process of its own, without what it takes to start. In c and
d whole chains of two short folds run, by `pipeline run`, from the fold table to the last held-out prediction.
"""

import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.compose import compose_params, write_composed
from pipeline.images.splits import PreparedSplit
from pipeline.launch import settle_threads
from tests.benchmarks.harness import Report, Row, Setting, format_seconds
from tests.benchmarks.loops import our_steps
from tests.faults.kills import finish, start
from tests.faults.workspace import clear_results, digest_results, make_workspace

STEPS = 15
CHAINS_RUNS = 2
SHORT = (
    "folds.ids=[0,1]", "train.epochs=2", "train.steps_per_epoch=40", "train.batch=8", "train.start_crop_px=128",
    "runtime.threads=1", "runtime.device=cpu", "select.trees=20", "evaluate.bootstrap=100",
    "housekeeping.score_every_epochs=0",
)  # fmt: skip
CASES = {"side by side": (2, 1), "one after another": (1, 1), "with two threads": (1, 2)}  # processes, threads


def run(setting: Setting) -> Report:
    settle_threads()  # of the processes that it starts
    seconds: dict[str, list[float]] = {case: [] for case in CASES}
    bytes_ = 0
    for _ in range(setting.runs):
        for case, (processes, threads) in CASES.items():
            found = [time_steps(setting.prepared, processes, threads) for _ in range(2 // processes)]
            seconds[case].append(sum(each[0] for each in found))
            bytes_ = max(bytes_, *(each[1] for each in found))
    ours, alone, threaded = (seconds[case] for case in CASES)
    rows = []
    for suffix, against, theirs, target in (
        ("a", "one after another, each of one thread", alone, "<= 0.6"),
        ("b", "one after another, each of two threads", threaded, "printed"),
    ):
        ratios = [one / other for one, other in zip(ours, theirs, strict=True)]
        rows.append(Row(
            f"13{suffix}", f"{STEPS} steps of two folds, processes of one thread side by side", against,
            f"{statistics.median(ratios):.2f} (ours over theirs, {min(ratios):.2f} .. {max(ratios):.2f})", target,
            format_seconds(statistics.median(ours)), format_seconds(statistics.median(theirs)),
            f"a process took up to {bytes_ / 2**30:.1f} GiB" if suffix == "a" else "",
        ))  # fmt: skip
    return Report([*rows, *time_chains(min(setting.runs, CHAINS_RUNS))])


def time_chains(runs: int) -> list[Row]:
    """Return the rows of whole chains: as processes, and as tasks of Ray on two machines of a core each."""
    seconds: dict[str, list[float]] = {"one after another": [], "processes": [], "tasks of Ray": []}
    with tempfile.TemporaryDirectory() as name, started_cluster() as address:
        folder = make_workspace(Path(name).resolve() / "checkout")
        write_composed(folder / "params.yaml", [*SHORT, "cluster.cpus=1", "cluster.memory_gib=0.1"])
        finish(folder, "folds")
        cases = {
            "one after another": ["--jobs", "1"],
            "processes": ["--jobs", "2"],
            "tasks of Ray": ["--engine", "ray", "--address", address, "--storage", f"{name}/shared"],
        }
        wanted = None
        for _ in range(runs):
            for case, arguments in cases.items():
                clear_results(folder)
                shutil.rmtree(f"{name}/shared", ignore_errors=True)
                finish(folder, "folds")
                begin = time.time()
                code = start(folder, "run", *arguments, module="pipeline").wait()
                found = digest_results(folder, [f"folds/weights/main/{fold}.safetensors" for fold in (0, 1)])
                wanted = wanted or found
                assert (code, found) == (0, wanted), (folder / "log.txt").read_text()[-3000:]
                seconds[case].append(
                    max((folder / f"folds/oof/main/{fold}.npz").stat().st_mtime for fold in (0, 1)) - begin
                )
    theirs = seconds.pop("one after another")
    rows = []
    for suffix, (case, ours) in zip("cd", seconds.items(), strict=True):
        ratios = [one / other for one, other in zip(ours, theirs, strict=True)]
        rows.append(Row(
            f"13{suffix}", f"whole chains of two short folds, {case} of one thread side by side", "one after another",
            f"{statistics.median(ratios):.2f} (ours over theirs, {min(ratios):.2f} .. {max(ratios):.2f})", "<= 0.6",
            format_seconds(statistics.median(ours)), format_seconds(statistics.median(theirs)),
            "the same weights, byte for byte" if suffix == "c" else "",
        ))  # fmt: skip
    return rows


@contextmanager
def started_cluster() -> Iterator[str]:
    """Start a Ray cluster on this machine, a head without a core and two machines of one each; yield its address."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        for _ in range(2):
            cluster.add_node(num_cpus=1)
        cluster.wait_for_nodes()
        yield cluster.address
    finally:
        cluster.shutdown()


def time_steps(prepared: Path, processes: int, threads: int) -> tuple[float, int]:
    """Return the seconds that steps take in so many processes at once, of the slowest, and the most bytes of one."""
    command = [sys.executable, "-m", "tests.benchmarks.folds", str(prepared), str(threads)]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(processes)]
    found = [process.communicate()[0].split()[-2:] for process in started]
    return max(float(seconds) for seconds, _ in found), max(int(most) for _, most in found)


def main() -> None:
    import resource
    import time

    prepared, threads = Path(sys.argv[1]), sys.argv[2]
    params = compose_params(
        ["train=cpu", "runtime.device=cpu", "train.start_crop_px=128", f"runtime.threads={threads}"]
    )
    split = PreparedSplit.open(prepared / "train")
    our_steps(split, params, 3)()
    work = our_steps(split, params, STEPS)
    begin = time.perf_counter()
    work()
    print(time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


if __name__ == "__main__":
    main()
