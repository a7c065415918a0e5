"""Pages that are made: gallery, notebooks, link check."""

from __future__ import annotations

import json
import re
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest

from sccausal import pl

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"

pytestmark = pytest.mark.skipif(not (DOCS / "conf.py").exists(), reason="tests of a package without its docs")


def load(path: Path) -> ModuleType:
    spec = spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_gallery_shows_every_plot():
    text = (DOCS / "gallery.md").read_text(encoding="utf-8")
    shown = re.findall(r"^### `pl\.(\w+)`$", text, flags=re.M)
    assert sorted(shown) == sorted(pl.__all__), "run `make gallery` after adding its function to docs/make_gallery.py"
    for name in shown:
        assert f"(_static/gallery/{name}.png)" in text
        assert (DOCS / "_static" / "gallery" / f"{name}.png").stat().st_size < 200_000


def test_pictures_stay_small():
    sizes = [path.stat().st_size for path in (DOCS / "_static").rglob("*.png")]
    assert max(sizes) < 200_000 and sum(sizes) < 1_500_000


def test_every_notebook_becomes_a_page(tmp_path):
    source = ROOT / "notebooks"
    names = load(DOCS / "_ext" / "notebook_pages.py").make_pages(source, tmp_path / "pages")
    assert sorted(names) == sorted(path.stem for path in source.glob("*.ipynb"))
    cards = (tmp_path / "pages" / "_cards.md").read_text(encoding="utf-8")
    for name in names:
        assert (tmp_path / "pages" / f"{name}.ipynb").exists()
        assert f"]({name}.ipynb)" in cards and f"\n{name}\n" in cards


def test_a_notebook_that_appears_or_goes_is_followed(tmp_path):
    pages = load(DOCS / "_ext" / "notebook_pages.py")
    source, target = tmp_path / "notebooks", tmp_path / "pages"
    source.mkdir()
    cell = {"cell_type": "markdown", "source": ["# Something new\n", "\n", "What it shows {cite:p}`Kang2018`. More."]}
    (source / "new.ipynb").write_text(json.dumps({"cells": [cell]}), encoding="utf-8")
    assert pages.make_pages(source, target) == ["new"]
    cards = (target / "_cards.md").read_text(encoding="utf-8")
    assert "[Something new](new.ipynb)" in cards and "What it shows. More." in cards and "cite" not in cards
    (source / "new.ipynb").unlink()
    assert pages.make_pages(source, target) == [] and not (target / "new.ipynb").exists()


def test_link_check_finds_missing_files_and_anchors(tmp_path):
    check = load(DOCS / "check_links.py")
    (tmp_path / "a.html").write_text(
        '<a href="b.html#here">1</a><a href="b.html#gone">2</a><img src="c.png"><a href="https://example.org">3</a>'
        '<a href="#top">4</a><p id="top">'
    )
    (tmp_path / "b.html").write_text('<h1 id="here">b</h1>')
    found = [(path.name, link, why) for path, link, why in check.broken_links(tmp_path)]
    assert found == [("a.html", "b.html#gone", "no such anchor"), ("a.html", "c.png", "no such file")]
    assert check.main(tmp_path) == 1


def test_pages_of_functions_are_written_in_the_format_of_their_templates():
    # autosummary takes the first suffix for its pages; in Markdown their directives would be shown as text
    text = (DOCS / "conf.py").read_text(encoding="utf-8")
    assert re.search(r'^source_suffix = \{"\.rst"', text, flags=re.M)
