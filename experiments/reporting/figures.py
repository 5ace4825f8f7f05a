"""Figures that matplotlib draws, in which text is text."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from common.runtime.files import write_atomically
from common.shown_text import in_lines, shortened

WEBP_QUALITY = 70
CAPTION_LINES = 8  # matplotlib takes a minute for a page of text
LABEL = 80  # characters
OFFSETS = ((3, 3), (3, -8), (-14, 3), (-14, -8))  # of a label from its point, in points of the page: the first that has room


def plotting() -> Any:
    """matplotlib.pyplot, drawing into files: every picture with text begins here.

    "$" is a dollar, not the beginning of a formula, and a character that no font has is a box without warnings.
    """
    import warnings

    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["text.parse_math"] = False
    warnings.filterwarnings("ignore", message="Glyph .* missing from")
    from matplotlib import pyplot

    return pyplot


def logarithmic(axes: Any, which: str) -> None:
    """Makes the "x" or "y" axis logarithmic; its ticks are numbers, not matplotlib's formulas."""
    from matplotlib.ticker import LogFormatter

    getattr(axes, f"set_{which}scale")("log")
    axis = getattr(axes, f"{which}axis")
    axis.set_major_formatter(LogFormatter())
    axis.set_minor_formatter(LogFormatter())


def save_figure(figure: Any, path: Path, colours: int | None = None) -> None:
    """Writes a matplotlib figure in the format of the path's ending, whole or not at all, and closes it.

    colours: of a PNG at most so many, which a plot does not show and which takes a third of the bytes; None for photographs.
    """
    buffer = io.BytesIO()
    options = {"pil_kwargs": {"quality": WEBP_QUALITY}} if path.suffix == ".webp" else {}
    figure.savefig(buffer, format=path.suffix[1:], dpi=110, **options)
    plotting().close(figure)
    if colours is not None:
        from PIL import Image

        drawn = Image.open(buffer).convert("RGB").quantize(colours, dither=Image.Dither.NONE)
        buffer = io.BytesIO()
        drawn.save(buffer, "PNG", optimize=True)
    write_atomically(path, buffer.getvalue())


def picture_caption(text: str, width: int) -> str:
    """A caption, or a model's name, over a picture: lines of `width` characters, and no more of them than are quick to draw."""
    return in_lines(text, width, CAPTION_LINES)


def picture_label(text: str) -> str:
    """What a legend or a point calls a job, in one line that is not taken for matplotlib's "_hidden" labels."""
    label = shortened(text, LABEL)
    return f" {label}" if label.startswith("_") else label


def short_path(site: str) -> str:
    """A module path short enough for a tick of an axis."""
    words = {"transformer_blocks": "tb", "attentions": "attn", "resnets": "res", "_blocks": "", "_block": ""}
    for long, brief in words.items():
        site = site.replace(long, brief)
    return site


class Label(NamedTuple):
    """What stands beside a point of a panel."""

    text: str
    x: float
    y: float
    colour: Any


def write_labels(axis: Any, labels: Sequence[Label]) -> None:
    """Each beside its point and none on another: one that has no room is left out. After the figure's layout."""
    window, taken = axis.get_window_extent(), []
    for label in labels:
        for offset in OFFSETS:
            note = axis.annotate(
                shortened(label.text, 12),
                (label.x, label.y),
                xytext=offset,
                textcoords="offset points",
                fontsize=6,
                color=label.colour,
            )
            box = note.get_window_extent()
            inside = window.x0 <= box.x0 and box.x1 <= window.x1 and window.y0 <= box.y0 and box.y1 <= window.y1
            if inside and not any(box.overlaps(other) for other in taken):
                taken.append(box)
                break
            note.remove()
