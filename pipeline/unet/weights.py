"""The file format of weights to predict with, safetensors: tensors and text go in, the same come out.

Which network they are of is not known here: see `model.load_model`. A checkpoint to resume from is another thing, and
has a module of its own.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from pipeline.errors import InputError, shorten
from pipeline.files import atomic_path

# safetensors writes its metadata in an order that changes from call to call. As one entry, a sorted JSON, equal
# weights are equal files, which DVC's cache and the promise of bit-identical runs rest on.
_METADATA_KEY = "metadata"


def save_weights(model: nn.Module, path: Path, metadata: dict[str, str]) -> None:
    """Write the parameters and buffers of `model` and `metadata` to `path` (.safetensors), atomically.

    Equal weights and metadata give equal bytes, whatever the device and the memory format of `model`.
    """
    _write({name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}, path, metadata)


def halve_weights(path: Path) -> None:
    """Write the weights at `path` anew, atomically, in half the room: kernels of convolutions become float16.

    What is small stays as it is: biases, and batch norms, whose variances may lie below what float16 can tell from 0.
    A network takes the values of either file in float32.

    Raises:
        InputError: the file is missing or damaged, or a kernel is too large for float16.
    """
    tensors, metadata = read_weights(path)
    halved = {name: tensor.half() if _is_kernel(tensor) else tensor for name, tensor in tensors.items()}
    if odd := [name for name, tensor in halved.items() if tensor.is_floating_point() and not tensor.isfinite().all()]:
        raise InputError(f"{path}: {odd[0]} has values beyond 65504, the largest of float16; keep the weights whole")
    _write(halved, path, metadata)


def _is_kernel(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and tensor.ndim == 4 and tensor.shape[0] > 1


def _write(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    with atomic_path(path) as partial:
        partial.write_bytes(save(tensors, {_METADATA_KEY: json.dumps(metadata, sort_keys=True)}))


def read_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors of `path` by their names in the state dict, on the CPU, and the metadata saved with them.

    Raises:
        InputError: the file is missing or damaged.
    """
    with _open_weights(path) as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no mapping)
        return tensors, json.loads((file.metadata() or {})[_METADATA_KEY])


def read_metadata(path: Path) -> dict[str, str]:
    """Return the metadata saved with the weights at `path`.

    Raises:
        InputError: the file is missing or damaged.
    """
    with _open_weights(path) as file:
        return dict(json.loads((file.metadata() or {})[_METADATA_KEY]))


@contextmanager
def _open_weights(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (OSError, SafetensorError, KeyError, json.JSONDecodeError) as error:
        raise InputError(
            f"{path}: not readable weights of this pipeline ({shorten(error)}); train the fold again"
        ) from error
