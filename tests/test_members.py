"""Members of an ensemble: what each is trained by, and what params.yaml may not say of them."""

import pytest

from pipeline.compose import compose_params
from pipeline.errors import InputError
from tests.tiny import tiny_params


def test_one_member_is_what_params_yaml_says() -> None:
    params = compose_params()
    own = params.of_member("main")
    assert params.member_ids == ("main",)
    assert own == params
    assert params.of_members == {"main": params}


def test_a_member_differs_by_its_changes_alone() -> None:
    params = compose_params(["members=three"])
    lite2, near = params.of_member("lite2"), params.of_member("near")
    assert lite2.unet.model_dump() == params.unet.model_dump() | {"encoder": "tu-tf_efficientnet_lite2"}
    assert (near.size.object_diameter_px, near.train.crop_px, near.unet) == (32, 160, params.unet)
    for own, name in ((lite2, "lite2"), (near, "near")):
        assert (own.member_ids, own.members) == ((name,), {name: {}})
        assert own.train.epochs == params.train.epochs


def test_a_section_may_be_another_s() -> None:
    vanilla = "{name: vanilla, depth: 5, width: 16, padding: same, upsampling: nearest, dropout: 0.0}"
    params = compose_params([f"+members.taught={{unet: {vanilla}}}", "member_ids=[main,taught]"])
    assert params.of_member("taught").unet.name == "vanilla"
    assert params.of_member("taught").train == params.train


def test_a_member_may_know_nuclei_of_another_size() -> None:
    params = compose_params(["+members.near={size.object_diameter_px: 40}", "member_ids=[main,near]"])
    assert params.known_px == {"main": params.size.object_diameter_px, "near": 40}


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["+members.x={data.dir: a}"], r": members\.x: data\.dir: members may differ in contrast, unet, .* alone"),
        (["+members.x={train.epochs: 0}"], r": members\.x: train\.epochs: Input should be greater.*, got 0"),
        (["+members.x={train.epoch: 9}"], r": members\.x: train\.epoch: no such key"),
        (["+members.x={train.lr.more: 9}"], r": members\.x: train\.lr\.more: there is no lr"),
        (["+members.x={unet: 3}"], r": members\.x: unet: give all of the section, or one key as `unet\.KEY`"),
        (["+members.x={targets.boundary: membrane}"], r": members\.x: targets\.boundary: members may differ in"),
        (["+members.x={predict.scales: [1.0]}"], r": members\.x: predict\.scales are \(1\.0,\) and not \(0\.5"),
        (["+members.x={unet.encodr: resnet34}"], r": members\.x: unet\.encodr: no such key; unet has name, encoder"),
        (["members=three", "unet=vanilla"], r": members\.lite2: unet\.encoder: no such key; unet has name, depth"),
        (["+members.x={unet: {name: vanilla}, unet.width: 8}"], r": members\.x: unet\.width: unet is given as a whole"),
        (["+members.x-y={}"], r"members\.x-y.*should match pattern"),
        (["member_ids=[main,y]"], r": member_ids: y is none of `members`, which has main"),
        (["member_ids=[main,main]"], r": member_ids: main, main: each may be named once"),
        (["member_ids=[]"], r": member_ids: .* at least 1 item"),
        (["ensemble.weights=best"], r": ensemble\.weights: Input should be 'equal' or 'greedy', got 'best'"),
    ],
)
def test_what_a_member_may_not_be_is_said(overrides: list[str], words: str) -> None:
    with pytest.raises(InputError, match=words):
        compose_params(overrides)


def test_a_member_that_is_not_there_is_named() -> None:
    with pytest.raises(InputError, match="no member is called lite9; `members` has main"):
        tiny_params().of_member("lite9")
