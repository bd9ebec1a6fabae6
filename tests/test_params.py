"""params.yaml: equal to what DVC's Hydra composition makes by default, closed, and clear about what is wrong."""

import contextlib
import re
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.compose import compose_params, write_composed
from pipeline.errors import InputError
from pipeline.images.augment import build_augment
from pipeline.images.cpu_augment import CpuAugment
from pipeline.options import check_section
from pipeline.params import Params, load_params
from pipeline.unet.losses import build_loss
from pipeline.unet.model import NETWORKS
from pipeline.unet.vanilla import VanillaParams, length_rule
from tests.tiny import tiny_source

ROOT = Path(__file__).resolve().parents[1]


def test_params_yaml_is_the_composed_default(tmp_path: Path) -> None:
    write_composed(tmp_path / "params.yaml")
    assert (tmp_path / "params.yaml").read_text() == (ROOT / "params.yaml").read_text(), "run `make params`"


def check_entries(params: Params) -> None:
    """Let every table check what its entries are told."""
    check_section(NETWORKS[params.unet.name].params, params.unet.model_extra or {}, "unet")
    build_loss(params.loss)
    build_augment(params.augment)
    CpuAugment(params.augment, params.train.crop_px)


@pytest.mark.parametrize("data", ["sample", "full", "stage2"])
@pytest.mark.parametrize("train", ["quick", "cpu", "gpu"])
@pytest.mark.parametrize("unet", ["smp", "vanilla", "paper"])
def test_every_choice_of_groups_is_valid(data: str, train: str, unet: str) -> None:
    params = compose_params([f"data={data}", f"train={train}", f"unet={unet}"])
    check_entries(params)
    assert params.unet.name == ("smp" if unet == "smp" else "vanilla")
    assert params.data.dir == ("data/sample" if data == "sample" else "data/dsb2018")


@pytest.mark.parametrize("name", [path.stem for path in sorted((ROOT / "pipeline/conf/augment").glob("*.yaml"))])
def test_every_augmentation_is_valid(name: str) -> None:
    params = compose_params([f"augment={name}"])
    check_entries(params)
    assert bool(params.augment.effects) == (name != "none")


@pytest.mark.parametrize("name", [path.stem for path in sorted((ROOT / "pipeline/conf/study").glob("*.yaml"))])
def test_the_parameters_of_every_study_are_valid(name: str) -> None:
    check_entries(compose_params([f"+study={name}"]))


def test_a_recipe_brings_its_data_and_yields_to_what_is_asked_for() -> None:
    params = compose_params(["recipe=isbi2012"])
    check_entries(params)
    (source,) = params.data.sources.values()
    assert (source.layout, params.folds.groups, params.targets.boundary) == ("stack", "blocks", "membrane")
    unet = check_section(VanillaParams, params.unet.model_extra or {}, "unet")
    assert (unet.padding, unet.dropout, params.loss.weight_map) == ("valid", 0.5, True)
    # The whole slice and what valid padding takes around it: every pixel of it can come to be seen.
    lengths, train = length_rule(unet), params.train
    assert train.tile_px == 512 + 2 * lengths.margin_px
    assert params.augment.effects["translation"] == {"px": (train.tile_px - train.crop_px) / 2}
    assert lengths.input_for(lengths.output_of(train.crop_px)) == train.crop_px
    wide = compose_params(["recipe=isbi2012", "unet.width=64"])
    assert wide == params.model_copy(update={"unet": params.unet.model_copy(update={"width": 64})})
    assert compose_params(["recipe=isbi2012", "unet=smp"]).unet.name == "smp"


def test_stage2_trains_the_same_as_full() -> None:
    full, stage2 = compose_params(["data=full"]).model_dump(), compose_params(["data=stage2"]).model_dump()
    differing = {key for key in full["data"] if full["data"][key] != stage2["data"][key]}
    assert differing == {"test", "test_shares", "solution"}
    assert {**full, "data": 0} == {**stage2, "data": 0}


def test_an_override_out_of_bounds_is_refused() -> None:
    with pytest.raises(InputError, match=r"train\.lr: .*got -1"):
        compose_params(["train.lr=-1"])


def change(tmp_path: Path, key: str, value: Any) -> Path:
    """Write params.yaml with one key changed; `...` removes it."""
    content = yaml.safe_load((ROOT / "params.yaml").read_text())
    *sections, last = key.split(".")
    section = content
    for name in sections:
        section = section[name]
    if value is ...:
        del section[last]
    else:
        section[last] = value
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        ("train.lrr", 0.1, "train.lrr"),
        ("train.lr", ..., "train.lr"),
        ("train", ..., "train"),
        ("train.lr", -1, "train.lr"),
        ("train.lr", "fast", "train.lr"),
        ("train.epochs", 2**31, "train.epochs"),
        ("select.trees", 2**31, "select.trees"),
        ("train.tile_px", 8, "train"),
        ("train.start_crop_px", 1000, "train"),
        ("folds.ids", [0], "folds"),
        ("folds.ids", [1, 2], "folds"),
        ("unet.name", 3, "unet.name"),
        ("augment.backend", "none", "augment.backend"),
        ("augment.effects", {"blur": {"sigma_px": "wide"}}, "augment.effects.blur.sigma_px"),
        ("loss.terms", {"bce": {}}, "loss.terms.bce.weight"),
        ("loss.terms", {"bce": {"weight": -1}}, "loss.terms.bce.weight"),
        ("data.sources", {}, "data.sources"),
        ("data.sources", {"a b": tiny_source("a", "stack").model_dump()}, "data.sources.a b"),
        (
            "data.sources",
            {"a": tiny_source("a", "stack", scored=False).model_dump()},
            "data: .*no source of a is scored",
        ),
        ("data.sources.dsb2018.weight", 0.0, "data.sources.dsb2018.weight"),
        ("data.sources.dsb2018.licence", ..., "data.sources.dsb2018.licence"),
        ("data.test", {"archive": "a"}, "data.test"),
        ("runtime.device", "gpu", "runtime.device"),
        ("runtime.threads", 0, "runtime.threads"),
        ("size.min_zoom", 5.0, "size"),
        ("housekeeping.workers", 0, "housekeeping.workers"),
        ("predict.overlap_px", 400, "predict"),
        ("decode.seed_threshold", [1.0], "decode.seed_threshold"),
    ],
)
def test_a_wrong_key_is_named(tmp_path: Path, key: str, value: Any, named: str) -> None:
    with pytest.raises(InputError) as error:
        load_params(change(tmp_path, key, value))
    assert re.search(f"params.yaml: {named}", str(error.value))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["", "- a\n", "a: [", "\0"])
def test_a_file_that_is_no_mapping_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "params.yaml").write_text(text)
    with pytest.raises(InputError, match=r"params\.yaml"):
        load_params(tmp_path / "params.yaml")


@pytest.mark.parametrize(
    "value",
    [
        *(
            "9" * 5000,
            "0x" + "f" * 5000,
            "1:" * 400 + "1.5",
            "2001-99-99",
            "!!int ''",
            "!!bool x",
            "!!float x",
            "!!binary x",
        ),
        *("!!timestamp x", "!!python/object/apply:os.system ['true']", "&a [*a]", "{<<: [*b, *b]}", "[" * 5000),
        *("[ " * 5000, "{a: " * 500, '"\\ud800"', "1" * 900, "-1", "[[1, 2], [3]]", "1e999", ".nan"),
    ],
)
@pytest.mark.parametrize("key", ["epochs", "lr"])
def test_a_value_that_breaks_yaml_or_its_types_is_refused_soon(tmp_path: Path, key: str, value: str) -> None:
    text = (ROOT / "params.yaml").read_text()
    changed = re.sub(rf"^  {key}: .*$", lambda _: f"  {key}: {value}", text, count=1, flags=re.MULTILINE)
    assert changed != text
    (tmp_path / "params.yaml").write_text(changed)
    start = time.process_time()
    with pytest.raises(InputError, match=r"params\.yaml") as error:
        load_params(tmp_path / "params.yaml")
    assert time.process_time() - start < 5
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 1500


@pytest.mark.parametrize("kind", ["[%s]", "{<<: [%s]}"])
def test_a_bomb_of_aliases_is_refused_before_it_unfolds(tmp_path: Path, kind: str) -> None:
    lines = ["a0: &a0 {x: 1}"]
    lines += [f"a{i}: &a{i} {kind % ', '.join([f'*a{i - 1}'] * 10)}" for i in range(1, 12)]
    (tmp_path / "params.yaml").write_text("\n".join(lines) + "\n" + (ROOT / "params.yaml").read_text())
    with pytest.raises(InputError, match="an anchor"):
        load_params(tmp_path / "params.yaml")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_whatever_is_put_in_it_is_read_or_refused(tmp_path: Path, data: st.DataObject) -> None:
    text = (ROOT / "params.yaml").read_text()
    place = data.draw(st.integers(0, len(text)))
    text = text[:place] + data.draw(st.text(max_size=12)) + text[place + data.draw(st.integers(0, 5)) :]
    (tmp_path / "params.yaml").write_bytes(text.encode("utf-8", "surrogatepass"))
    with contextlib.suppress(InputError):
        params = load_params(tmp_path / "params.yaml")
        assert Params.model_validate(params.model_dump()) == params


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        load_params(tmp_path / "params.yaml")


def test_a_key_that_comes_twice_is_refused(tmp_path: Path) -> None:
    text = (ROOT / "params.yaml").read_text().replace("  epochs:", "  epochs: 1\n  epochs:")
    (tmp_path / "params.yaml").write_text(text)
    with pytest.raises(InputError, match="the key epochs twice"):
        load_params(tmp_path / "params.yaml")


def test_none_is_null_in_the_network() -> None:
    assert compose_params(["unet.weights=none"]).unet == compose_params(["unet.weights=null"]).unet
