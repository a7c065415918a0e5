"""Check the internal links of the built documentation: every file and every anchor they name must be there.

    python docs/check_links.py docs/_build/html

Exit status 1 if a link leads nowhere. Links to other sites are not followed, so no network is needed.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Page(HTMLParser):
    """Links and anchors of one page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if value is None:
                continue
            if name == "id" or (name == "name" and tag == "a"):
                self.anchors.add(value)
            elif name in {"href", "src"} and tag != "base":
                self.links.append(value)


def broken_links(root: Path) -> Iterator[tuple[Path, str, str]]:
    """Yield (page, link, what is wrong) for the pages below ``root``."""
    pages = {path: Page(path) for path in sorted(root.resolve().rglob("*.html"))}
    if not pages:
        raise SystemExit(f"there are no pages in {root}")
    for path, page in pages.items():
        for link in dict.fromkeys(page.links):
            parts = urlsplit(link)
            if parts.scheme or parts.netloc or link.startswith("#__"):
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if target.is_dir():
                target = target / "index.html"
            if not target.exists():
                yield path, link, "no such file"
            elif parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].anchors:
                yield path, link, "no such anchor"


def main(root: Path) -> int:
    """Print what is broken."""
    broken = list(broken_links(root))
    for path, link, why in broken:
        print(f"{path.relative_to(root.resolve())}: {link} ({why})")
    print(f"{len(broken)} broken internal link(s)")
    return int(bool(broken))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    raise SystemExit(main(Path(sys.argv[1])))
