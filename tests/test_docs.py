"""The documentation names what the package offers, and cites what it has."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("baselines", "data", "datasets", "grn", "metrics", "models", "nn", "pl", "pp", "tl", "train")
CONSTANTS = {"KEYS", "METRICS", "UNITS", "Intervention"}  # values without a docstring of their own
GENERATED = {"MuDataInterventionField"}  # made by a wrapper of scvi-tools

pytestmark = pytest.mark.skipif(not (ROOT / "docs" / "conf.py").exists(), reason="tests of a package without its docs")


@pytest.mark.parametrize("room", ROOMS)
def test_every_public_name_has_a_place_in_the_api_pages(room):
    text = "\n".join(p.read_text(encoding="utf-8") for p in (ROOT / "docs" / "api").glob("*.md"))
    listed = set(re.findall(rf"^   {room}\.(\w+)$", text, flags=re.M))
    public = set(import_module(f"sccausal.{room}").__all__) - CONSTANTS
    assert public - listed == set(), "not in docs/api"
    assert listed - public == set(), "in docs/api, but not public"


@pytest.mark.parametrize("room", ROOMS)
def test_docstrings_are_there_and_without_open_placeholders(room):
    module = import_module(f"sccausal.{room}")
    for name in set(module.__all__) - CONSTANTS - GENERATED:
        doc = getattr(module, name).__doc__
        assert doc, f"{room}.{name} has no docstring"
        assert "%(" not in doc, f"{room}.{name} has an open placeholder"


def test_every_citation_has_its_entry():
    known = set(
        re.findall(r"^@\w+\{(\w+),", (ROOT / "docs" / "references.bib").read_text(encoding="utf-8"), flags=re.M)
    )
    pages = [*(ROOT / "src").rglob("*.py"), *(ROOT / "docs").rglob("*.md")]
    for page in pages:
        for group in re.findall(r"cite:[pt]:?\}?`([^`]+)`", page.read_text(encoding="utf-8")):
            missing = {key.strip() for key in group.split(",")} - known
            assert not missing, f"{page.relative_to(ROOT)} cites {missing}"


def test_links_between_files_of_the_repository_lead_somewhere():
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]
    for page in pages:
        if "generated" in page.parts or "_build" in page.parts:
            continue
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.relative_to(ROOT)} links to {target}"


def test_version_is_the_same_everywhere():
    version = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), flags=re.M)
    assert version
    assert f"version: {version[1]}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"## {version[1]}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
