"""Which genes may have outgoing edges."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from sccausal._errors import SetupError, unknown_name

if TYPE_CHECKING:
    from anndata import AnnData

logger = logging.getLogger(__name__)


def regulator_names(
    regulators: Sequence[str] | str | None, genes: Sequence[str], adata: AnnData | None
) -> list[str] | None:
    """Names of the regulators among ``genes``; ``None`` for all genes.

    Parameters
    ----------
    regulators
        Names, of which those that were not measured are left out, or a boolean column of ``adata.var``.
    genes
        Genes of the model.
    adata
        Cells the column is looked up in.

    Raises
    ------
    sccausal._errors.UnknownNameError
        The column does not exist.
    sccausal._errors.SetupError
        No regulator is among the genes.
    """
    if regulators is None:
        return None
    if isinstance(regulators, str):
        if adata is None:
            raise SetupError("`regulators` names a column of adata.var, but there is no adata; give the genes.")
        if regulators not in adata.var:
            raise unknown_name("column", regulators, adata.var.columns, "adata.var")
        found = [g for g, keep in zip(genes, adata.var[regulators].astype(bool), strict=True) if keep]
        asked = found
    else:
        known = set(genes)
        asked = [str(r) for r in dict.fromkeys(regulators)]
        found = [r for r in asked if r in known]
    if not found:
        raise SetupError(
            f"None of the {len(asked)} regulators is among the {len(genes)} genes; use the names of adata.var_names."
        )
    if len(found) < len(asked):
        logger.info("%d of %d regulators are among the genes.", len(found), len(asked))
    return found
