"""Tables and notes on a terminal, in which text is text."""

from typing import Any

from rich.console import Console
from rich.text import Text

from common.shown_text import visible


class PlainConsole(Console):
    """A rich.console.Console to which "[red]", ":smile:" and escape sequences in strings are text; style them by `style`."""

    def __init__(self, **options: Any):
        super().__init__(markup=False, emoji=False, highlight=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(visible(text), **options)
