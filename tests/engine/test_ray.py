"""Tasks of Ray, on this machine as two: side by side, started again where their machine is lost, and given up."""

import threading
import time
from pathlib import Path

import pytest

from pipeline.engine.ray_tasks import Task, connected, count_room, run_on_ray
from pipeline.errors import InputError
from pipeline.housekeeping import ClusterParams

ray = pytest.importorskip("ray", reason="`pip install -e '.[ray]'`")
Cluster = pytest.importorskip("ray.cluster_utils").Cluster


def cluster_params(**changes: float) -> ClusterParams:
    return ClusterParams(**{"cpus": 1, "gpus": 0, "memory_gib": 0, "patience_s": 60.0, "rest_s": 1.0} | changes)


@pytest.fixture(scope="module")
def cluster():
    """Return a head without a core, and two machines of one each."""
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    for _ in range(2):
        made.add_node(num_cpus=1)
    made.wait_for_nodes()
    yield made
    made.shutdown()


def make_task(folder: Path, name: str, code: str) -> Task:
    return Task(name, ("-c", f"from pathlib import Path\nimport os, sys, time\n{code}"), folder, folder / f"{name}.log")


def run_all(cluster, tasks: list[Task], params: ClusterParams) -> str:
    with connected(cluster.address) as driver:
        return run_on_ray(driver, tasks, params)


@pytest.mark.parametrize(
    ("asked", "room"),
    [({"cpus": 1}, 2), ({"cpus": 0.5}, 4), ({"cpus": 2}, 0), ({"cpus": 1, "gpus": 1}, 0), ({"cpus": 0}, 3)],
)
def test_there_is_room_on_machines_for_whole_tasks(cluster, asked, room):
    with connected(cluster.address) as driver:
        assert count_room(driver, cluster_params(**asked)) == room


def test_tasks_run_side_by_side_on_two_machines(cluster, tmp_path):
    """Each waits for the other's file."""
    code = "Path('{0}').touch()\nwhile not Path('{1}').exists(): time.sleep(0.01)\nprint('met')"
    tasks = [make_task(tmp_path, name, code.format(name, other)) for name, other in ("ab", "ba")]
    assert run_all(cluster, tasks, cluster_params()) == ""
    assert all(task.log.read_text().splitlines()[-1] == "met" for task in tasks)


def test_an_error_of_its_own_is_not_tried_again_and_stops_no_other(cluster, tmp_path):
    tasks = [
        make_task(tmp_path, "a", "Path('tries').open('a').write('x')\nsys.exit('error: mend this')"),
        make_task(tmp_path, "b", "time.sleep(1)\nPath('done').touch()"),
    ]
    failed = run_all(cluster, tasks, cluster_params())
    assert failed.startswith("a: ended in 1; its log, ")
    assert failed.endswith("error: mend this")
    assert (tmp_path / "tries").read_text() == "x"
    assert (tmp_path / "done").exists()
    assert tasks[0].log.read_text().splitlines()[-1] == "error: mend this"


@pytest.mark.parametrize("end", ["os.kill(os.getpid(), 9)", "sys.exit(128 + 9)"])
def test_a_task_that_is_killed_or_whose_own_process_is_is_tried_three_times(cluster, tmp_path, end):
    task = make_task(tmp_path, "a", f"Path('tries').open('a').write('x')\n{end}")
    failed = run_all(cluster, [task], cluster_params())
    assert failed.startswith("a: killed by signal 9, as where memory runs out, the last of 3 tries; its log, ")
    assert (tmp_path / "tries").read_text() == "xxx"


def test_a_task_that_makes_no_step_is_started_again(cluster, tmp_path):
    """The first try hangs; what waits for room meanwhile is not taken for one that hangs."""
    hang = "first = not Path('again').exists()\nPath('again').touch()\nprint('on', flush=True)\ntime.sleep(90 * first)"
    slow = "for _ in range(8): print('step', flush=True); time.sleep(1)"
    tasks = [make_task(tmp_path, "a", hang), *(make_task(tmp_path, name, slow) for name in "bc")]
    begin = time.monotonic()
    assert run_all(cluster, tasks, cluster_params(patience_s=4.0)) == ""
    assert time.monotonic() - begin < 60
    assert tasks[0].log.read_text().count("on\n") == 2


def test_a_machine_that_is_lost_loses_no_task(cluster, tmp_path):
    node = cluster.add_node(num_cpus=1, resources={"lost": 1})
    cluster.wait_for_nodes()
    code = "Path('{0}').touch()\nfor _ in range(60): time.sleep(0.1)\nPath('{0}.done').touch()"
    tasks = [make_task(tmp_path, name, code.format(name)) for name in "abc"]

    def lose() -> None:
        while not all((tmp_path / name).exists() for name in "abc"):
            time.sleep(0.1)
        cluster.remove_node(node, allow_graceful=False)

    thread = threading.Thread(target=lose)
    thread.start()
    assert run_all(cluster, tasks, cluster_params()) == ""
    thread.join()
    assert all((tmp_path / f"{name}.done").exists() for name in "abc")
    assert sum(task.log.read_text().count("on ") for task in tasks) == 4


def test_a_machine_that_does_not_see_the_folder_says_so(cluster, tmp_path):
    task = Task("a", ("-c", ""), tmp_path / "nowhere", tmp_path / "a.log")
    failed = run_all(cluster, [task], cluster_params())
    assert f"does not see {tmp_path / 'nowhere'}; name a folder that all machines see" in failed
    assert not (tmp_path / "nowhere").exists()


def test_no_cluster_is_one_line():
    with pytest.raises(InputError, match=r"^--address 127\.0\.0\.1:1: cannot join a Ray cluster there \(.*\); run"):
        connected("127.0.0.1:1").__enter__()
