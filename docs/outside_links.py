"""For mkdocs: links from a page to files outside of the documentation are checked, and shown as their paths."""

import re
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError

DOCS = Path(__file__).parent
LINK = re.compile(r"\[([^\]]*)\]\((\.\./[^)#]*)(#[^)]*)?\)")


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """`markdown` with the path in the place of each link that leaves the folder; PluginError where nothing is there."""

    def shown(link: re.Match[str]) -> str:
        if not (DOCS / link[2]).exists():
            raise PluginError(f"{page.file.src_path}: there is no {link[2]}.")
        path = link[2].removeprefix("../")
        return f"`{path}`" if link[1] == path else f"{link[1]} (`{path}`)"

    return LINK.sub(shown, markdown)
