"""Sections "Returns" and "Raises" of docstrings may be prose, as in scanpy.

Napoleon reads every unindented line below "Returns" as the name or type of a value of its own, so that a paragraph of
three lines becomes three values. Here such a section is one block of text: paragraphs stay paragraphs, and a name with
an indented description below it becomes an entry of a list.
"""

from __future__ import annotations

import re
from typing import Any

from sphinx.ext.napoleon import NumpyDocstring


def _returns(self: NumpyDocstring, section: str) -> list[str]:
    if self._lines and self._lines.get(0).strip() == ":":  # put there by sphinx-autodoc-typehints
        self._lines.next()
    found = _section(list(self._lines))
    least = min((len(line) - len(line.lstrip()) for line in found), default=0)
    heads = [line[least:] for line in found if not line[least:].startswith(" ")]
    if len(heads) < len(found) and all(_NAMES.fullmatch(head) for head in heads):
        return _NAPOLEON_RETURNS(self, section)
    lines = self._dedent(self._consume_to_next_section())
    return [*self._format_block(":returns: ", _without_ends(lines)), ""]


def _raises(self: NumpyDocstring, section: str) -> list[str]:
    found = _section(list(self._lines))
    if len({len(line) - len(line.lstrip()) for line in found}) > 1:  # names with descriptions below
        return _NAPOLEON_RAISES(self, section)
    lines = _without_ends(self._dedent(self._consume_to_next_section()))
    return [".. rubric:: Raises", "", *lines, ""]


def _section(lines: list[str]) -> list[str]:
    """Lines up to the next title, which is followed by a line of dashes."""
    for i, line in enumerate(lines[1:], 1):
        if line.strip() and set(line.strip()) == {"-"}:
            return [line for line in lines[: i - 1] if line.strip()]
    return [line for line in lines if line.strip()]


def _without_ends(lines: list[str]) -> list[str]:
    while lines and not lines[-1].strip():
        lines = lines[:-1]
    return lines


_NAMES = re.compile(r"\w+(, \w+)*")
_NAPOLEON_RAISES = NumpyDocstring._parse_raises_section
_NAPOLEON_RETURNS = NumpyDocstring._parse_returns_section


def setup(app: Any) -> dict[str, Any]:
    NumpyDocstring._parse_returns_section = _returns  # type: ignore[method-assign]
    NumpyDocstring._parse_raises_section = _raises  # type: ignore[method-assign]
    return {"parallel_read_safe": True, "parallel_write_safe": True}
