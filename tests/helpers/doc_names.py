"""What names stand for that examples in docstrings use without defining them.

``model`` is a trained model of the class that fits the function, ``adata`` the cells it was trained on. Everything
else an example needs, it makes itself. Models are tiny and trained once per run of the tests.
"""

from __future__ import annotations

import re
from functools import cache
from typing import Any

import scvi

import sccausal as scc

SHORT = {"max_epochs": 2, "accelerator": "cpu", "enable_progress_bar": False}

# public name -> class of the model its example calls ``model``
MODEL_OF = {
    "models.CITEVAE": "CITEVAE",
    "models.CausCell": "CausCell",
    "pl.alignment": "GCRLAE",
    "pl.counterfactual": "CausCell",
    "pl.gene_set_response": "CausCell",
    "pl.lagged_graph": "CITEVAE",
    "pl.latent_graph": "DiscrepancyVAE",
    "pl.response_over_time": "CITEVAE",
    "pl.spatial_effect": "CausCell",
    "pl.tmex_null": "GCRLAE",
    "pl.trajectories": "CITEVAE",
    "tl.gene_set_response": "CausCell",
    "tl.latent_programs": "CITEVAE",
}


def free_names(source: str) -> set[str]:
    """Names of this module's vocabulary that an example uses and does not define."""
    used = {name for name in ("adata", "model") if re.search(rf"\b{name}\b(?!\s*=[^=])", source)}
    return {name for name in used if not re.search(rf"^\s*(>>>|\.\.\.) {name}(, \w+)* = ", source, flags=re.M)}


def names_for(public_name: str, source: str) -> dict[str, Any]:
    """The free names of an example and what they stand for; ``adata`` is a copy that the example may change."""
    wanted = free_names(source)
    if not wanted:
        return {}
    model = trained(MODEL_OF.get(public_name, "ScConCRL"))
    names = {"model": model, "adata": model.adata.copy()}
    return {name: names[name] for name in wanted}


@cache
def trained(name: str) -> Any:
    scvi.settings.seed = 0
    model = _MAKERS[name]()
    model.train(**SHORT)
    return model


def _scconcrl() -> Any:
    adata = scc.metrics.log1p_norm(
        scc.datasets.simulate_perturb_seq(240, 30, 3, n_types=2, n_batches=2, condition=True, seed=0, sortability=False)
    )
    scc.ScConCRL.setup_anndata(
        adata, batch_key="batch", labels_key="cell_type", condition_key="condition", control="control"
    )
    return scc.ScConCRL(adata)


def _causcell() -> Any:
    adata = scc.metrics.log1p_norm(scc.datasets.simulate_concepts(160, 30, seed=0))
    scc.CausCell.setup_anndata(adata, concept_keys=["a", "b"])
    return scc.CausCell(adata, dag={"b": ["a"]})


def _citevae() -> Any:
    adata = scc.metrics.log1p_norm(
        scc.datasets.simulate_time_course(20, n_genes=30, n_targets=4, times=(1, 2, 4), seed=0)
    )
    scc.CITEVAE.setup_anndata(adata, intervention_key="intervention", control="control", time_key="time")
    return scc.CITEVAE(adata)


def _latents() -> Any:
    return scc.datasets.simulate_latent_sem(300, n_genes=12, n_latent=3, seed=0)


def _discrepancy() -> Any:
    adata = _latents()
    scc.DiscrepancyVAE.setup_anndata(adata, intervention_key="intervention", control="control")
    return scc.DiscrepancyVAE(adata)


def _autoencoder() -> Any:
    adata = _latents()
    genes = list(adata.var_names)
    scc.GCRLAE.setup_anndata(adata)
    return scc.GCRLAE(adata, activities={"first": genes[:4], "second": genes[4:8]})


_MAKERS = {
    "CITEVAE": _citevae,
    "CausCell": _causcell,
    "DiscrepancyVAE": _discrepancy,
    "GCRLAE": _autoencoder,
    "ScConCRL": _scconcrl,
}
