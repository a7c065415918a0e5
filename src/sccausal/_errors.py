"""Errors that say what was found and how to mend it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class SCCausalError(Exception):
    """Base of all errors raised on purpose by sccausal."""


class SetupError(SCCausalError, ValueError):
    """A key, column or argument does not describe the data it is meant to describe."""


class InputDataError(SCCausalError, ValueError):
    """The values of a matrix or column cannot be used (missing, negative, constant, not counts, ...)."""


class UnknownNameError(SCCausalError, ValueError):
    """A gene, intervention, condition or category is not known; close names are suggested."""


class NotSupportedError(SCCausalError, AttributeError):
    """The model cannot honour this request; the message names those that can."""


class NumericalError(SCCausalError, FloatingPointError):
    """Training met a value that is not finite; the last good weights are restored."""


class FileFormatError(SCCausalError, ValueError):
    """A saved file is corrupted, oversized, foreign or of an unknown schema."""


def close_names(name: str, known: Iterable[str], n: int = 3) -> list[str]:
    """Names in ``known`` that resemble ``name``, best first, ignoring case."""
    known = [str(k) for k in known]
    lower: dict[str, str] = {}
    for k in known:
        lower.setdefault(k.lower(), k)
    return [lower[m] for m in difflib.get_close_matches(str(name).lower(), list(lower), n=n, cutoff=0.6)]


def unknown_name(kind: str, name: str, known: Iterable[str], where: str = "") -> UnknownNameError:
    """Build the error for a name that is not among ``known``.

    Parameters
    ----------
    kind
        What the name stands for, e.g. ``"gene"``.
    name
        The name that was asked for.
    known
        All names that would have been accepted.
    where
        Where the names come from, e.g. ``"adata.obs['condition']"``.
    """
    known = [str(k) for k in known]
    near = close_names(name, known)
    shown = ", ".join(known[:8]) + (f", ... ({len(known)} in all)" if len(known) > 8 else "")
    hint = f" Did you mean {' or '.join(repr(n) for n in near)}?" if near else ""
    place = f" in {where}" if where else ""
    return UnknownNameError(f"Unknown {kind} {name!r}{place}.{hint} Known: {shown or 'none'}.")
