"""Scripts for the queues of clusters: an array of jobs, each of which runs one command with its own number.

In: the command, and what a job asks for. Out: a text for `sbatch` or `kubectl apply`.
"""

import math
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.housekeeping import ClusterParams


@dataclass(frozen=True)
class Array:
    """Jobs that differ by their number alone.

    Attributes:
        name: of the whole.
        count: jobs, counted from 0.
        words: the command; `{index}` in one of them stands for a job's number.
        folder: in which they run.
    """

    name: str
    count: int
    words: Sequence[str]
    folder: Path


def write_slurm(array: Array, cluster: ClusterParams) -> str:
    """Return a job array of Slurm; give it to `sbatch`."""
    asked = f"#SBATCH --gpus-per-task={math.ceil(cluster.gpus)}\n" if cluster.gpus else ""
    asked += f"#SBATCH --mem={_mebibytes(cluster)}M\n" if cluster.memory_gib else ""
    return f"""#!/bin/bash
#SBATCH --job-name={array.name}
#SBATCH --array=0-{array.count - 1}
#SBATCH --ntasks=1
#SBATCH --cpus-per-task={max(1, math.ceil(cluster.cpus))}
{asked}#SBATCH --requeue
set -euo pipefail
cd {shlex.quote(str(array.folder))}
exec {_quote(array.words, "SLURM_ARRAY_TASK_ID")}
"""


def write_k8s(array: Array, cluster: ClusterParams) -> str:
    """Return an Indexed Job of Kubernetes; give it to `kubectl apply -f`, with an image and a volume of your own.

    Source: https://kubernetes.io/docs/tasks/job/indexed-parallel-processing-static
    """
    limits = f"cpu: {max(cluster.cpus, 0.1):g}"
    limits += f", memory: {_mebibytes(cluster)}Mi" if cluster.memory_gib else ""
    limits += f", nvidia.com/gpu: {math.ceil(cluster.gpus)}" if cluster.gpus else ""
    return f"""apiVersion: batch/v1
kind: Job
metadata:
  name: {array.name}
spec:
  completionMode: Indexed
  completions: {array.count}
  parallelism: {array.count}
  backoffLimitPerIndex: 3
  podFailurePolicy:  # an error of its own, which ends in 1, is not tried again
    rules: [{{action: FailIndex, onExitCodes: {{operator: In, values: [1]}}}}]
  template:
    spec:
      restartPolicy: Never
      containers:
        - name: job
          image: IMAGE  # one that has this package
          command: [bash, -c]
          args:
            - |
              cd {shlex.quote(str(array.folder))} || exit
              exec {_quote(array.words, "JOB_COMPLETION_INDEX")}
          resources:
            limits: {{{limits}}}
          volumeMounts:
            - {{name: shared, mountPath: PATH}}  # the same on all machines
      volumes:
        - name: shared
          persistentVolumeClaim: {{claimName: CLAIM}}
"""


WRITERS: dict[str, Callable[[Array, ClusterParams], str]] = {"slurm": write_slurm, "k8s": write_k8s}


def _mebibytes(cluster: ClusterParams) -> int:
    return max(1, round(cluster.memory_gib * 1024))


def _quote(words: Sequence[str], variable: str) -> str:
    """Return a command for a shell, a job's number read from an environment variable."""
    number = f'"${{{variable}}}"'
    quoted = [number.join(shlex.quote(part) if part else "" for part in word.split("{index}")) for word in words]
    return " ".join(word or "''" for word in quoted)
