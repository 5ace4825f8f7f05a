"""A person's text (captions, names of files and teachers, settings, errors) where it is shown: text, never markup or control.

Pictures: experiments.reporting.figures; tables on a terminal: common.runtime.console; HTML: the template
experiments/reporting/page.html escapes by itself.
"""

import re
import textwrap
from typing import Any

JOINERS = "\u200c\u200d"  # that build emoji and words; Python does not call them printable


def spelt_out(text: Any) -> str:
    """The text with what would steer a terminal, or is no character, as Python writes it: "\\n", "\\x1b", "\\udcff"."""
    return "".join(each if each.isprintable() or each in JOINERS else ascii(each)[1:-1] for each in str(text))


def visible(text: Any) -> str:
    """As `spelt_out`, line by line."""
    return "\n".join(map(spelt_out, str(text).split("\n")))


def one_line(text: Any) -> str:
    """As `spelt_out`, each run of white space being one blank."""
    return spelt_out(" ".join(str(text).split()))


def shortened(text: Any, characters: int) -> str:
    """As `one_line`, cut to at most so many characters, the last of which tell that."""
    line = one_line(str(text)[: 4 * characters])
    return line if len(line) <= characters and len(str(text)) <= 4 * characters else f"{line[: characters - 3]}..."


def in_lines(text: Any, width: int, lines: int) -> str:
    """As `one_line`, wrapped to `width` characters and cut to so many `lines`, the last of which tells that."""
    line = one_line(str(text)[: 4 * width * lines])
    more = " ..." if len(str(text)) > 4 * width * lines else ""
    return "\n".join(textwrap.wrap(line + more, width, max_lines=lines, placeholder=" ..."))


def markdown_text(text: Any) -> str:
    """The text so that Markdown shows it as it is, on one line: no emphasis, link, code, HTML, formula or mention of markup.

    In a cell of a table experiments.reporting.paper_table.markdown sees to "|".
    """
    escaped = re.sub(r"([\\`*\[\]<>$~&])", r"\\\1", one_line(text))
    return re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", escaped)  # between letters it is no emphasis


def code_span(text: Any) -> str:
    """The text as code inside a line of Markdown, between more backticks than any it holds."""
    line = one_line(text)
    fence = "`" * (1 + longest_run(line))
    inner = f" {line} " if line.startswith("`") or line.endswith("`") else line
    return f"{fence}{inner}{fence}"


def code_block(text: Any, language: str = "") -> str:
    """The text as a block of code in Markdown, its lines kept."""
    shown = visible(text)
    fence = "`" * max(3, 1 + longest_run(shown))
    return f"{fence}{language}\n{shown}\n{fence}"


def longest_run(text: str) -> int:
    """How many backticks stand side by side at most."""
    return max(map(len, re.findall("`+", text)), default=0)
