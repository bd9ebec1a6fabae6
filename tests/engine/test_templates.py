"""Scripts for queues: what a shell makes of them is the command that was meant, with the number of the job."""

import subprocess
from pathlib import Path

import pytest
import yaml

from pipeline.engine.templates import Array, write_k8s, write_slurm
from pipeline.housekeeping import ClusterParams

ODD = ["python", "-m", "pipeline", "predict", "a b.png", "it's", "$HOME", "--share", "{index}/8"]


@pytest.fixture
def make_array(tmp_path):
    """Jobs in a folder of an odd name; `python` there is a program that writes its arguments down, one a line."""
    folder = tmp_path / "all of us"
    folder.mkdir()
    program = folder / "python"
    program.write_text('#!/bin/sh\npwd > cwd\nprintf "%s\\n" "$@" > words\n')
    program.chmod(0o755)
    return lambda words=ODD, count=8: Array("nuclei", count, words, folder)


def cluster(**changes: float) -> ClusterParams:
    return ClusterParams(**{"cpus": 2, "gpus": 0, "memory_gib": 4, "patience_s": 60.0, "rest_s": 1.0} | changes)


def run_by_shell(text: str, folder: Path, **variables: str) -> list[str]:
    subprocess.run(["bash"], input=text, text=True, check=True, env={"PATH": f"{folder}:/usr/bin:/bin", **variables})
    assert (folder / "cwd").read_text().strip() == str(folder)
    return (folder / "words").read_text().splitlines()


def test_a_job_of_slurm_runs_the_command_with_its_number(make_array):
    array = make_array()
    words = run_by_shell(write_slurm(array, cluster()), array.folder, SLURM_ARRAY_TASK_ID="3")
    assert words == [*ODD[1:-1], "3/8"]


def test_a_job_of_slurm_without_a_number_ends_in_an_error(make_array):
    array = make_array()
    with pytest.raises(subprocess.CalledProcessError):
        run_by_shell(write_slurm(array, cluster()), array.folder)


def test_slurm_is_told_what_a_job_asks_for(make_array):
    lines = write_slurm(make_array(count=5), cluster(gpus=1, cpus=4, memory_gib=1.5)).splitlines()
    assert lines[0] == "#!/bin/bash"
    assert {
        "#SBATCH --array=0-4", "#SBATCH --cpus-per-task=4", "#SBATCH --mem=1536M", "#SBATCH --gpus-per-task=1",
    } <= set(lines)  # fmt: skip
    assert "gpus" not in write_slurm(make_array(), cluster())


def test_a_job_of_kubernetes_runs_the_command_with_its_number(make_array):
    array = make_array()
    job = yaml.safe_load(write_k8s(array, cluster()))
    assert (job["spec"]["completionMode"], job["spec"]["completions"]) == ("Indexed", 8)
    (container,) = job["spec"]["template"]["spec"]["containers"]
    assert container["resources"]["limits"] == {"cpu": 2, "memory": "4096Mi"}
    assert container["command"] == ["bash", "-c"]
    (script,) = container["args"]
    assert run_by_shell(script, array.folder, JOB_COMPLETION_INDEX="7") == [*ODD[1:-1], "7/8"]


def test_kubernetes_is_told_of_gpus(make_array):
    job = yaml.safe_load(write_k8s(make_array(), cluster(gpus=1)))
    assert job["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == 1
