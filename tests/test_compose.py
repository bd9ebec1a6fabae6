"""Overrides compose into params.yaml as DVC composes them, and one that names nothing ends in one line."""

import pytest

from pipeline.cli import main
from pipeline.compose import compose_params
from pipeline.errors import InputError
from pipeline.params import load_params
from pipeline.provenance import ROOT


def test_overrides_are_composed_and_checked():
    assert compose_params(["train.epochs=3"]).train.epochs == 3
    assert compose_params([]) == load_params(ROOT / "params.yaml")


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("data=nonsense", "Could not find 'data/nonsense' Available options in 'data': full isbi2012"),
        ("train.epoch=3", "Could not override 'train.epoch'. To append to your config use +train.epoch=3"),
        ("train.epochs=[1", "no viable alternative at input '[1'"),
        ("train", "missing EQUAL at '<EOF>'"),
        ("train=null", "Config group override must be a string or a list. Got NoneType"),
        ("train.epochs=${nothing}", "Interpolation key 'nothing' not found"),
        ("train.epochs=many", "train.epochs: Input should be a valid integer"),
    ],
)
def test_an_override_of_nothing_is_named_in_one_line(override, reason):
    with pytest.raises(InputError) as refusal:
        compose_params([override])
    assert reason in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert "path=" not in str(refusal.value)
    assert len(str(refusal.value)) < 400


def test_the_command_writes_params_yaml_or_leaves_it_as_it_is(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    main(["compose", "data=full", "train.epochs=3"])
    written = (tmp_path / "params.yaml").read_bytes()
    assert load_params(tmp_path / "params.yaml") == compose_params(["data=full", "train.epochs=3"])
    assert capsys.readouterr().out.startswith("params.yaml: data=full train.epochs=3; `python -m pipeline run` brings")
    with pytest.raises(SystemExit, match=r"^error: .*train\.epochs"):
        main(["compose", "train.epochs=-3"])
    assert (tmp_path / "params.yaml").read_bytes() == written
