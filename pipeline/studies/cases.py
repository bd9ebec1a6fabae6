"""A picture of good and bad cases of a finished run: the best, median and worst image of each type, held out.

`python -m pipeline.studies.cases [--run DIR]` draws results/cases.jpg: true outlines green, predicted ones yellow.
"""

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.errors import one_line_errors
from pipeline.experiments.report import choose_examples
from pipeline.experiments.runs import read_scores
from pipeline.images.contrast import brighten_image
from pipeline.images.splits import PreparedSplit
from pipeline.nuclei.submission import read_label_maps
from pipeline.studies.study import RESULTS, make_run_parser

SIDE_PX, TITLE_PX, WINDOW_PX = 320, 22, 256
TRUE_BGR, PREDICTED_BGR = (80, 220, 60), (0, 220, 255)


def draw_case(image: NDArray[np.uint8], maps: list[NDArray[np.integer]], title: str) -> NDArray[np.uint8]:
    """Return a tile of the image's fullest window, with the outlines of its true and its predicted nuclei."""
    window = find_fullest(maps[0])
    bright = brighten_image(np.asarray(image))[0][window][..., ::-1]
    scale = SIDE_PX / max(bright.shape[:2])
    size = (round(bright.shape[1] * scale), round(bright.shape[0] * scale))
    canvas = np.zeros((TITLE_PX + SIDE_PX, SIDE_PX, 3), np.uint8)
    tile = cv2.resize(np.ascontiguousarray(bright), size, interpolation=cv2.INTER_LINEAR)
    for label_map, colour in zip(maps, (TRUE_BGR, PREDICTED_BGR), strict=True):
        enlarged = cv2.resize(label_map[window].astype(np.float32), size, interpolation=cv2.INTER_NEAREST)
        for label in np.unique(enlarged[enlarged > 0]):
            outlines = cv2.findContours((enlarged == label).astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
            cv2.drawContours(tile, outlines[0], -1, colour, 1)
    canvas[TITLE_PX : TITLE_PX + size[1], : size[0]] = tile
    cv2.putText(canvas, title, (4, 15), cv2.FONT_HERSHEY_SIMPLEX, 0.42, (255, 255, 255), 1, cv2.LINE_AA)
    return canvas


def find_fullest(label_map: NDArray[np.integer]) -> tuple[slice, slice]:
    """Return the window of at most 256 px with the most nuclei, of those that half overlap."""
    tops, lefts = (range(0, max(1, length - WINDOW_PX // 2), WINDOW_PX // 2) for length in label_map.shape)
    windows = [np.s_[top : top + WINDOW_PX, left : left + WINDOW_PX] for top in tops for left in lefts]
    return max(windows, key=lambda window: len(np.unique(label_map[window])))


def main() -> None:
    run = make_run_parser(__doc__ or "").parse_args().run
    folds, split = run / "folds", PreparedSplit.open(run / "data" / "prepared" / "train")
    examples = choose_examples(read_scores(folds / "scores.csv"))
    shapes = {example.image_id: split.shape_of(example.image_id) for example in examples}
    found = dict(read_label_maps(folds / "oof.csv", shapes))
    tiles: dict[str, list[NDArray[np.uint8]]] = {}
    for example in examples:
        name = example.image_id
        title = f"{example.image_type.replace('_', ' ')}, {example.role}: {example.ap:.2f}"
        maps: list[NDArray[np.integer]] = [split.label_map(name), found[name]]
        tiles.setdefault(example.image_type, []).append(draw_case(split.image(name), maps, title))
    rows = [np.concatenate(row, axis=1) for row in tiles.values()]
    width = max(row.shape[1] for row in rows)
    rows = [np.pad(row, ((0, 0), (0, width - row.shape[1]), (0, 0))) for row in rows]
    path = RESULTS / "cases.jpg"
    cv2.imwrite(str(path), np.concatenate(rows), [cv2.IMWRITE_JPEG_QUALITY, 85])
    print(path)


if __name__ == "__main__":
    with one_line_errors():
        main()
