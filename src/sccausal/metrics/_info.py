"""What each metric is called, which way is better, and in which unit it is read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

import pandas as pd

Direction = Literal["lower", "higher", "one", "none"]


class MetricInfo(NamedTuple):
    """Reading guide of one metric.

    Parameters
    ----------
    direction
        Which value is better: ``"higher"``, ``"lower"`` or ``"one"``, the closer to 1; ``"none"`` for a description.
    unit
        Unit of the value.
    best
        Value of a perfect prediction.

    Examples
    --------
    >>> import sccausal as scc
    >>> scc.metrics.METRICS["rmse"].direction
    'lower'
    """

    direction: Direction  # "one": the closer to 1 the better; "none": a description, not a score
    unit: str
    best: float


_EXPRESSION = "log1p(1e4)"

METRICS: dict[str, MetricInfo] = {
    "rmse": MetricInfo("lower", _EXPRESSION, 0.0),
    "mae": MetricInfo("lower", _EXPRESSION, 0.0),
    "wmse": MetricInfo("lower", f"{_EXPRESSION}^2", 0.0),
    "nmse_top": MetricInfo("lower", "share of the true change", 0.0),
    "pearson_change": MetricInfo("higher", "correlation", 1.0),
    "pearson_change_top": MetricInfo("higher", "correlation", 1.0),
    "pearson_ref": MetricInfo("higher", "correlation", 1.0),
    "r2_top": MetricInfo("higher", "explained share", 1.0),
    "r2_pearson_top": MetricInfo("higher", "squared correlation", 1.0),
    "adjusted_r2_top": MetricInfo("higher", "squared correlation", 1.0),
    "centroid_distance": MetricInfo("lower", f"{_EXPRESSION}, Euclidean", 0.0),
    "centroid_accuracy": MetricInfo("higher", "rank share", 1.0),
    "pds_cosine": MetricInfo("higher", "rank share", 1.0),
    "pds_l1": MetricInfo("higher", "rank share", 1.0),
    "aecd": MetricInfo("lower", f"{_EXPRESSION}, Euclidean", 0.0),
    "diversity": MetricInfo("one", "ratio", 1.0),
    "energy_distance": MetricInfo("lower", f"{_EXPRESSION}, Euclidean", 0.0),
    "mmd2": MetricInfo("lower", "squared kernel distance", 0.0),
    "wasserstein_1d": MetricInfo("lower", _EXPRESSION, 0.0),
    "sliced_wasserstein": MetricInfo("lower", _EXPRESSION, 0.0),
    "variance_ratio": MetricInfo("one", "ratio", 1.0),
    "direction_match": MetricInfo("higher", "share of genes", 1.0),
    "direction_fidelity": MetricInfo("higher", "share of genes", 1.0),
    "direction_reach": MetricInfo("higher", "share of genes", 1.0),
    "de_jaccard": MetricInfo("higher", "share of genes", 1.0),
    "de_overlap": MetricInfo("higher", "share of genes", 1.0),
    "lfc_nmae": MetricInfo("lower", "share of the true change", 0.0),
    "de_auroc": MetricInfo("higher", "area", 1.0),
    "de_auprc": MetricInfo("higher", "area", 1.0),
    "interaction_auprc": MetricInfo("higher", "area", 1.0),
    "interaction_pearson": MetricInfo("higher", "correlation", 1.0),
    "gi_magnitude_error": MetricInfo("lower", "coefficients", 0.0),
    "gi_fit_error": MetricInfo("lower", "correlation", 0.0),
    "gi_equality_error": MetricInfo("lower", "ratio", 0.0),
    "gi_magnitude_rank": MetricInfo("higher", "rank correlation", 1.0),
    "gi_fit_rank": MetricInfo("higher", "rank correlation", 1.0),
    "n_de_true": MetricInfo("none", "genes", float("nan")),
    "n_de_pred": MetricInfo("none", "genes", float("nan")),
    "epr": MetricInfo("higher", "precision / density", float("nan")),
    "early_precision": MetricInfo("higher", "precision", 1.0),
    "auprc": MetricInfo("higher", "area", 1.0),
    "auprc_ratio": MetricInfo("higher", "area / density", float("nan")),
    "auroc": MetricInfo("higher", "area", 1.0),
    "direction_accuracy": MetricInfo("higher", "share of edges", 1.0),
    "signed_epr": MetricInfo("higher", "precision / density", float("nan")),
    "sign_accuracy": MetricInfo("higher", "share of edges", 1.0),
    "shd": MetricInfo("lower", "edges", 0.0),
    "edge_wasserstein": MetricInfo("higher", "standard deviations", float("nan")),
    "edge_precision": MetricInfo("higher", "share of edges", 1.0),
    "false_omission_rate": MetricInfo("lower", "share of pairs", 0.0),
    "n_edges": MetricInfo("none", "edges", float("nan")),
    "mcc": MetricInfo("higher", "correlation", 1.0),
    "spearman_mcc": MetricInfo("higher", "correlation", 1.0),
    "r2_linear": MetricInfo("higher", "explained share", 1.0),
    "r2_mlp": MetricInfo("higher", "explained share", 1.0),
    "concept_f1": MetricInfo("higher", "macro F1", 1.0),
    "concept_accuracy": MetricInfo("higher", "balanced accuracy", 1.0),
    "excess_leakage": MetricInfo("lower", "balanced accuracy", 0.0),
    "disentanglement": MetricInfo("higher", "1 - entropy", 1.0),
    "completeness": MetricInfo("higher", "1 - entropy", 1.0),
    "informativeness": MetricInfo("higher", "explained share", 1.0),
    "nmi": MetricInfo("higher", "mutual information", 1.0),
    "ari": MetricInfo("higher", "adjusted agreement", 1.0),
    "tmex_score": MetricInfo("higher", "partial correlation", 1.0),
    "tmex_distance": MetricInfo("lower", "pairs", 0.0),
    "cf_rmse": MetricInfo("lower", _EXPRESSION, 0.0),
    "cf_nmse": MetricInfo("lower", "share of the true change", 0.0),
    "cf_slope": MetricInfo("one", "ratio", 1.0),
    "cf_cell_pearson": MetricInfo("higher", "correlation", 1.0),
    "cf_identity": MetricInfo("lower", "share of the norm", 0.0),
    "bio_conservation": MetricInfo("higher", "scIB", 1.0),
    "batch_correction": MetricInfo("higher", "scIB", 1.0),
    "total": MetricInfo("higher", "scIB", 1.0),
    "cells_per_second": MetricInfo("higher", "cells / s", float("nan")),
    "ratio_to_scvi": MetricInfo("higher", "ratio", float("nan")),
}


def as_table(values: Mapping[str, float]) -> pd.DataFrame:
    """One row per metric: ``metric, value, direction, unit``."""
    rows = [(name, float(v), METRICS[name].direction, METRICS[name].unit) for name, v in values.items()]
    return pd.DataFrame(rows, columns=["metric", "value", "direction", "unit"])
