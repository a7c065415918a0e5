"""Notebooks of the repository as pages of the documentation.

They stand in ``notebooks/``, beside ``docs/``, where they are run; Sphinx reads only what stands below its own folder.
At the start of a build each is copied to ``docs/notebooks/`` and gets a card (title, first sentences, first picture)
in ``docs/notebooks/_cards.md``, which ``docs/notebooks/index.md`` includes. A new notebook needs nothing more.
"""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from typing import Any

# reading order; what is not named here follows in alphabetical order
ORDER = (
    "quickstart",
    "condition_response",
    "unseen_doubles",
    "communities_and_programs",
    "concept_counterfactuals",
    "direct_effects",
    "time_course",
    "integration_and_queries",
    "your_own_model",
)


def make_pages(source: Path, target: Path) -> list[str]:
    """Copy the notebooks of ``source`` to ``target`` and write their cards; returns their names in reading order."""
    target.mkdir(exist_ok=True)
    (target / "_pictures").mkdir(exist_ok=True)
    notebooks = sorted(source.glob("*.ipynb"), key=lambda path: _position(path.stem))
    for stale in set(target.glob("*.ipynb")) - {target / path.name for path in notebooks}:
        stale.unlink()
    cards = []
    for path in notebooks:
        text = path.read_text(encoding="utf-8")
        _write(target / path.name, text)
        cards.append(_card(path.stem, json.loads(text), target))
    _write(target / "_cards.md", _CARDS.format(cards="\n".join(cards), names="\n".join(p.stem for p in notebooks)))
    return [path.stem for path in notebooks]


def _position(name: str) -> tuple[int, str]:
    return (ORDER.index(name) if name in ORDER else len(ORDER), name)


_CARDS = """\
:::::{{container}} cards
{cards}
:::::

```{{toctree}}
:hidden:

{names}
```
"""

_CARD = """\
::::{{container}} card
{picture}
[{title}]({name}.ipynb)

{lead}
::::
"""


def _card(name: str, notebook: dict[str, Any], target: Path) -> str:
    head = "".join(next(cell["source"] for cell in notebook["cells"] if cell["cell_type"] == "markdown"))
    title, _, rest = head.lstrip("# ").partition("\n")
    picture = _first_picture(notebook)
    if picture:
        path = target / "_pictures" / f"{name}.png"
        if not path.exists() or path.read_bytes() != picture:
            path.write_bytes(picture)
    return _CARD.format(
        name=name, title=title.strip(), lead=_lead(rest), picture=f"![](_pictures/{name}.png)\n" if picture else ""
    )


def _lead(text: str, most: int = 260) -> str:
    """First sentences of the first paragraph, without citations."""
    paragraph = re.sub(r"\s*\{cite:[pt]\}`[^`]*`", "", text.strip().split("\n\n")[0]).replace("\n", " ")
    lead = ""
    for sentence in re.split(r"(?<=[.?!]) ", paragraph):
        if lead and len(lead) + len(sentence) > most:
            break
        lead += sentence + " "
    return lead.strip()


def _first_picture(notebook: dict[str, Any]) -> bytes | None:
    for cell in notebook["cells"]:
        for output in cell.get("outputs", ()):
            picture = output.get("data", {}).get("image/png")
            if picture:
                return base64.b64decode("".join(picture))
    return None


def _write(path: Path, text: str) -> None:
    """Write what has changed only, so that Sphinx need not read the page again."""
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")


def _on_start(app: Any) -> None:
    docs = Path(app.srcdir)
    make_pages(docs.parent / "notebooks", docs / "notebooks")


def setup(app: Any) -> dict[str, Any]:
    app.connect("builder-inited", _on_start)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
