"""The file format of weights to predict with, safetensors: tensors and text go in, the same come out.

Among the text is a record of the parameters that a prediction must share with the training. Which network the weights
are of is not known here: see `model.load_model`. A checkpoint to resume from is another thing, and has a module of its
own.
"""

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from pipeline.errors import InputError, shorten
from pipeline.files import atomic_path
from pipeline.params import Recipe

# safetensors writes its metadata in an order that changes from call to call. As one entry, a sorted JSON, equal
# weights are equal files, which DVC's cache and the promise of bit-identical runs rest on.
_METADATA_KEY = "metadata"
_PARAMS_KEY = "params"
# Where an encoder's first weights came from: training has changed them, and those that it left are in the file.
_FREE = ("unet.weights", "unet.weights_file")
_MOST_SHOWN = 3  # parameters of a message


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


def record_params(recipe: Recipe) -> dict[str, str]:
    """Return metadata to save with weights: the parameters that a prediction must share with their training."""
    return {_PARAMS_KEY: json.dumps(_list_params(recipe), sort_keys=True)}


def check_params(paths: Sequence[Path], recipe: Recipe) -> None:
    """Refuse weights that were trained with other parameters than `recipe` has; say once where they keep no record.

    Raises:
        InputError: a file is missing or damaged, or its record says otherwise.
    """
    unknown = []
    for path in paths:
        if trained := _read_params(path):
            _compare_params(path, trained, _list_params(recipe))
        else:
            unknown.append(path)
    if unknown:
        print(
            f"{unknown[0]}{f' and {len(unknown) - 1} more' if unknown[1:] else ''}: of a version that did not record "
            "what networks were trained with; whether params.yaml is still the same cannot be checked",
            file=sys.stderr,
            flush=True,
        )


def _list_params(recipe: Recipe) -> dict[str, Any]:
    """Return by dotted key, as JSON has them, what is looked at, at which size, by what, and what it is asked for."""
    record: dict[str, Any] = {"size.object_diameter_px": recipe.size.object_diameter_px}
    for name, section in (("contrast", recipe.contrast), ("targets", recipe.targets), ("unet", recipe.unet)):
        record |= {f"{name}.{key}": value for key, value in section.model_dump(mode="json").items()}
    return {key: value for key, value in record.items() if key not in _FREE}


def _read_params(path: Path) -> dict[str, Any]:
    with _open_weights(path) as file:
        metadata = json.loads((file.metadata() or {})[_METADATA_KEY])
        return dict(json.loads(metadata.get(_PARAMS_KEY, "{}")))


def _compare_params(path: Path, trained: dict[str, Any], given: dict[str, Any]) -> None:
    odd = [
        f"{key} was {json.dumps(trained.get(key))} and is {json.dumps(given.get(key))}"
        for key in sorted(trained.keys() | given.keys())
        if trained.get(key) != given.get(key)
    ]
    if odd:
        more = f", and {len(odd) - _MOST_SHOWN} more" if len(odd) > _MOST_SHOWN else ""
        raise InputError(
            f"{path}: trained with other parameters than params.yaml has: {'; '.join(odd[:_MOST_SHOWN])}{more}; "
            "restore the params.yaml that it was trained with, or train again"
        )
