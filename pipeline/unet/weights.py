"""Weights to predict with, as safetensors: a trained network goes in, the same network in `eval` mode comes out.

A checkpoint to resume from is another thing, and has a module of its own.
"""

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from pipeline.errors import InputError
from pipeline.files import atomic_path
from pipeline.params import SmpParams, VanillaParams
from pipeline.unet.model import NormalizedUNet, build_model

# safetensors writes its metadata in an order that changes from call to call. As one entry, a sorted JSON, equal
# weights are equal files, which DVC's cache and the promise of bit-identical runs rest on.
_METADATA_KEY = "metadata"


def save_weights(model: nn.Module, path: Path, metadata: dict[str, str]) -> None:
    """Write the parameters and buffers of `model` and `metadata` to `path` (.safetensors), atomically.

    Equal weights and metadata give equal bytes, whatever the device and the memory format of `model`.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    with atomic_path(path) as partial:
        partial.write_bytes(save(tensors, {_METADATA_KEY: json.dumps(metadata, sort_keys=True)}))


def load_weights(path: Path, params: SmpParams | VanillaParams) -> tuple[NormalizedUNet, dict[str, str]]:
    """Return the network of `path` in `eval` mode on the CPU, and the metadata saved with it.

    Raises:
        InputError: the file is missing or damaged, or holds another network than `params` describe.
    """
    tensors, metadata = _read(path)
    model = build_model(params, pretrained=False)
    state = model.state_dict()
    odd = sorted(name for name in state.keys() | tensors.keys() if _shape(state, name) != _shape(tensors, name))
    if odd:
        raise InputError(
            f"{path}: not the network that `unet` in params.yaml describes: {len(odd)} tensors differ, such as "
            f"{odd[0]} ({_shape(tensors, odd[0])} there, {_shape(state, odd[0])} here); train the fold again, or "
            "restore the params.yaml it was trained with"
        )
    model.load_state_dict(tensors)
    return model.eval(), metadata


def read_metadata(path: Path) -> dict[str, str]:
    """Return the metadata saved with the weights at `path`.

    Raises:
        InputError: the file is missing or damaged.
    """
    return _read(path)[1]


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no mapping)
            return tensors, json.loads((file.metadata() or {})[_METADATA_KEY])
    except (OSError, SafetensorError, KeyError, json.JSONDecodeError) as error:
        raise InputError(f"{path}: not readable weights of this pipeline ({error}); train the fold again") from error


def _shape(tensors: dict[str, Tensor], name: str) -> tuple[int, ...] | str:
    return tuple(tensors[name].shape) if name in tensors else "none"
