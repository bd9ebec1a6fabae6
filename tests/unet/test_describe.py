"""A network's table: the paper's numbers, and torch's own counts as an oracle."""

import re
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from pipeline.errors import InputError
from pipeline.experiments.drawing import draw_network
from pipeline.params import NetworkParams
from pipeline.unet.describe import describe_network, format_stages
from pipeline.unet.model import build_model
from pipeline.yaml_files import read_yaml

ROOT = Path(__file__).resolve().parents[2]

SMP = NetworkParams(
    name="smp", encoder="tu-tf_efficientnet_lite0", weights=None, weights_file=None,
    decoder_channels=(128, 64, 48, 32, 16), upsampling="nearest", output_stride=1,
)  # fmt: skip


def vanilla(upsampling: str = "transposed", padding: str = "same", width: int = 16) -> NetworkParams:
    return NetworkParams(name="vanilla", depth=5, width=width, padding=padding, upsampling=upsampling, dropout=0.5)


COARSE = SMP.model_copy(update={"decoder_channels": (128, 64, 48, 32), "output_stride": 2})
GATED = SMP.model_copy(update={"encoder": "tu-efficientnet_b0"})  # with squeeze and excitation


@pytest.mark.parametrize(
    "params",
    [SMP, COARSE, GATED, vanilla(), vanilla("bicubic")],
    ids=["smp", "coarse", "gated", "transposed", "bicubic"],
)
def test_parameters_and_macs_are_those_that_torch_counts(params: NetworkParams) -> None:
    model = build_model(params, pretrained=False).eval()
    stages = describe_network(model, 64)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, 3, 64, 64))
    assert 2 * sum(stage.macs for stage in stages) == counter.get_total_flops()
    assert sum(stage.parameters for stage in stages) == sum(p.numel() for p in model.parameters())


def test_the_paper_s_network_has_its_shapes() -> None:
    # Figure 1 of arXiv:1505.04597: 572 x 572 gives 388 x 388 by way of 28 x 28 x 1024.
    stages = {stage.name: stage for stage in describe_network(build_model(vanilla(padding="valid", width=64)), 572)}
    assert stages["encoder 1"].gives == (64, 568, 568)
    assert stages["encoder 5"].gives == (1024, 28, 28)
    assert stages["decoder 1"].reads == (1024, 56, 56)  # 512 of the skip and 512 from below
    assert stages["decoder 4"].gives == (64, 388, 388)
    assert stages["head"].gives == (3, 388, 388)


@pytest.mark.parametrize("params", [SMP, GATED], ids=["smp", "gated"])
def test_a_pretrained_encoder_is_split_by_resolution(params: NetworkParams) -> None:
    stages = {stage.name: stage for stage in describe_network(build_model(params, pretrained=False), 256)}
    assert [stages[f"encoder {n}"].gives for n in (2, 3, 4, 5, 6)] == [
        (16, 128, 128), (24, 64, 64), (40, 32, 32), (112, 16, 16), (320, 8, 8),
    ]  # fmt: skip
    # What a decoder reads is what comes from below and the skip.
    assert stages["decoder 2"].reads[0] == stages["decoder 1"].gives[0] + stages["encoder 4"].gives[0]


def test_the_network_comes_back_as_it_was() -> None:
    model = build_model(vanilla()).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    describe_network(model, 64)
    assert model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


def test_a_size_that_does_not_fit_is_refused() -> None:
    with pytest.raises(InputError, match="nearest is 256"):
        describe_network(build_model(vanilla()), 250)


def test_table_and_drawing_show_every_stage() -> None:
    stages = describe_network(build_model(vanilla()), 256)
    text, svg = format_stages(stages), draw_network(stages, "a <title>")
    for stage in stages:
        assert stage.name in text
    assert "1,942,611" in text.splitlines()[-1]
    assert svg.count("skip:") == 4
    assert "a &lt;title&gt;" in svg


def test_the_tour_tells_what_the_network_is() -> None:
    page = (ROOT / "pipeline/unet/README.md").read_text(encoding="utf-8")
    unet = NetworkParams(**read_yaml(ROOT / "pipeline/conf/unet/vanilla.yaml"))
    model = build_model(unet)
    stages = describe_network(model, 256)
    assert format_stages(stages) in page
    assert draw_network(stages, f"{model.title}: a tile of 256 px") == (ROOT / "pipeline/unet/vanilla.svg").read_text(
        encoding="utf-8"
    )
    # Every idea's function is where the page says.
    for name, file in re.findall(r"\[`(\w+)[.\w]*`\]\(([\w./]+\.py)\)", page):
        assert re.search(rf"^(def|class) {name}\b", (ROOT / "pipeline/unet" / file).read_text(), re.MULTILINE), name
