"""Tables and notes on a terminal, in which text is text."""

from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from common.shown_text import visible


class PlainConsole(Console):
    """A rich.console.Console to which "[red]", ":smile:" and escape sequences in strings are text; style them by `style`."""

    def __init__(self, **options: Any):
        super().__init__(markup=False, emoji=False, highlight=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(visible(text), **options)


def text_table(titles: Sequence[str], lines: Iterable[Sequence[str]], words: int = 1) -> Table:
    """A table for a PlainConsole: the first `words` columns to the left and folded where they must, numbers to the right."""
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 1, 0, 0))
    for place, title in enumerate(titles):
        table.add_column(title, overflow="fold", justify="left" if place < words else "right", no_wrap=place >= words)
    for line in lines:
        table.add_row(*line)
    return table
