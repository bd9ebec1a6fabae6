"""The network of params.yaml: `describe`."""

import argparse
from pathlib import Path

from pipeline.commands.command import PARAMS, Commands

UNETS = sorted(path.stem for path in (Path(__file__).parents[1] / "conf" / "unet").glob("*.yaml"))


def add_commands(commands: Commands) -> None:
    """Add the parsers of these commands."""
    describe = commands.add_parser("describe", help="print the network of params.yaml as a table; draw it as an SVG")
    describe.add_argument("--tile-px", type=int, metavar="N", help="side of the tile; default: 256, or what fits next")
    describe.add_argument("--unet", choices=UNETS, help="one of pipeline/conf/unet; default: what params.yaml says")
    describe.add_argument("--svg", type=Path, metavar="FILE", help="where the drawing goes")
    describe.set_defaults(call=_describe)


def _describe(arguments: argparse.Namespace) -> None:
    from pipeline.experiments.drawing import draw_network
    from pipeline.files import write_text
    from pipeline.params import load_params
    from pipeline.unet.describe import describe_network, format_stages
    from pipeline.unet.model import build_model

    if arguments.unet:
        from pipeline.compose import compose_params

        unet = compose_params([f"unet={arguments.unet}"]).unet
    else:
        unet = load_params(PARAMS).unet
    model = build_model(unet, pretrained=False)
    fitting_px = model.lengths.input_for(256 - 2 * model.margin_px)
    tile_px = fitting_px if arguments.tile_px is None else arguments.tile_px
    stages = describe_network(model, tile_px)
    print(format_stages(stages))
    if arguments.svg:
        write_text(arguments.svg, draw_network(stages, f"{model.title}: a tile of {tile_px} px"))
        print(f"drawn in {arguments.svg}")
