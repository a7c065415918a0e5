"""CLIPR: direct effects between genes from the responses to perturbations, with what they rest on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd

from sccausal._errors import InputDataError, SetupError, unknown_name
from sccausal.grn._clipr_result import ESTIMATORS, CliprResult, Estimator
from sccausal.grn._direct_effects import (
    diagnostics,
    directed_drift,
    drift_form,
    response_form,
    sparse_response_form,
)

_DEFAULT_TIKHONOV = 1e-3
# share of the penalty at which effects are tested; on linear systems false discoveries then stay at 5 % or below
_TESTED = 0.3


def clipr(
    responses: pd.DataFrame,
    *,
    targets: Mapping[str, Iterable[str]] | None = None,
    estimator: Estimator = "response",
    standard_errors: pd.DataFrame | None = None,
    control_errors: pd.Series | None = None,
    sources: Literal["perturbed", "all"] | Sequence[str] = "perturbed",
    tikhonov: float | Literal["noise"] | None = None,
    penalty: Literal["lasso"] | None = None,
    l1: float = 0.05,
    drifts: pd.DataFrame | None = None,
    reference_state: pd.Series | None = None,
    precision: pd.DataFrame | None = None,
    n_bootstrap: int = 0,
    sep: str | None = "+",
    seed: int = 0,
) -> CliprResult:
    r"""Separate direct from total effects of perturbations on genes :cite:p:`Lorch2026`.

    Three estimators, for systems that are near linear around the control state and observed in rest:

    - ``"response"`` rests on the changes of the mean and on knowing the targets: :math:`\sum_j A_{ij}R_{kj} = 0` for
      every perturbation k that does not act on gene i. It gives directions, with :math:`A_{ii} = -1`.
    - ``"drift"`` (of the paper) rests on a drift that was learned: :math:`A = -\Phi X^+`. It is as good as the drift;
      a score network learns :math:`-S^{-1}`, which is symmetric and has no direction.
    - ``"drift+targets"`` adds to that drift the antisymmetric part for which perturbations act on their targets alone.

    Parameters
    ----------
    responses
        Changes of mean state from control, perturbations x genes; states of rest themselves for ``"drift"`` with
        ``reference_state``.
    targets
        Genes each perturbation acts on; default: its label, split at ``sep``. Perturbations without a gene among the
        columns are left out: what they act on first is not known.
    estimator
        See above.
    standard_errors, control_errors
        Standard errors of the means: perturbations x genes (of the perturbed cells alone), and of the control mean,
        which all responses share, (genes,).
    sources
        Genes that may act: ``"perturbed"`` (what goes through other genes counts as direct), ``"all"`` (then with a
        penalty), or names.
    tikhonov
        Penalty relative to the mean eigenvalue of the Gram matrix; ``"noise"`` takes the eigenvalue that sampling
        noise alone would have, the default where standard errors are given; otherwise 1e-3 (0 for ``"drift"``).
    penalty, l1
        ``"lasso"`` for few edges, needed with fewer perturbations than sources; see
        :func:`~sccausal.grn.sparse_response_form`.
    drifts
        For ``"drift"``: drifts under the perturbations at the reference point, perturbations x genes.
    reference_state
        For ``"drift"``: that point (genes,); default: control, where responses are zero.
    precision
        For ``"drift+targets"``: inverse covariance of the control cells (genes x genes).
    n_bootstrap
        Draws of a parametric bootstrap for standard errors and q-values.
    sep
        String between the targets in a label.
    seed
        Seed of the bootstrap.

    Returns
    -------
    :class:`CliprResult`.

    Raises
    ------
    sccausal._errors.SetupError
        An argument is unknown, or one that the estimator needs is missing.
    sccausal._errors.InputDataError
        Values are not finite, or no perturbation has a target among the genes.

    Notes
    -----
    Effects are causal only as far as the system is near linear, is observed in rest, and perturbations act on their
    targets alone. The time constant of a gene is not identified by ``"response"``: only the relative sizes of its
    inputs are.

    Examples
    --------
    >>> import numpy as np
    >>> import pandas as pd
    >>> import sccausal as scc
    >>> genes = ["A", "B", "C"]  # A acts on B, B acts on C
    >>> chain = [[1.0, 0.5, 0.25], [0.0, 1.0, 0.5], [0.0, 0.0, 1.0]]
    >>> responses = pd.DataFrame(chain, index=genes, columns=genes)  # perturbations x genes
    >>> result = scc.grn.clipr(responses, tikhonov=0.0)
    >>> effect = result.direct_effects.loc["A"]
    >>> round(float(effect["B"]), 2), bool(abs(effect["C"]) < 1e-6)  # A changes C only through B
    (0.5, True)
    """
    _check(estimator, tikhonov, penalty, drifts, precision, n_bootstrap)
    frame, acts, left_out = _usable(responses, targets, sep)
    genes = list(map(str, frame.columns))
    r = frame.to_numpy(dtype=np.float64)
    chosen = _sources(sources, genes, acts)
    errors = _errors(standard_errors, control_errors, frame)
    x = r[:, chosen]
    tau = _penalty(tikhonov, estimator, errors, x, chosen)
    origin = np.zeros(len(genes)) if reference_state is None else _series(reference_state, genes, "reference_state")
    solve = _solver(estimator, acts, chosen, tau, penalty, l1, drifts, precision, frame, origin)
    matrix = solve(r)  # (S, d), rows are sources
    square = matrix[:, chosen]
    checks = diagnostics(x, square)
    names = [genes[j] for j in chosen]
    extra: dict[str, Any] = {}
    if n_bootstrap:
        tested = solve
        if estimator == "response" and penalty is None:
            # the penalty that ranks best has a bias that makes false edges; a weaker one is tested
            tested = _solver(estimator, acts, chosen, _TESTED * tau, None, l1, None, None, frame, origin)
        extra = _bootstrap(tested, r, errors, chosen, n_bootstrap, seed, names, genes)
    if estimator != "response":
        a = matrix.T
        base = drifts.loc[frame.index, genes].to_numpy(np.float64) if drifts is not None else -r @ a.T
        extra["shifts"] = pd.DataFrame(base, index=frame.index, columns=genes)
        extra["intercept"] = pd.Series(-a @ origin, index=genes)
    return CliprResult(
        direct_effects=pd.DataFrame(matrix, index=names, columns=genes),
        total_effects=pd.DataFrame(_total(matrix, chosen), index=names, columns=genes),
        responses=frame,
        estimator=estimator,
        reference="control" if reference_state is None else "given",
        tikhonov=tau,
        rank=checks.rank,
        singular_values=checks.singular_values,
        condition_number=checks.condition_number,
        symmetry_ratio=checks.symmetry,
        n_perturbed=int(acts.any(axis=0).sum()),
        identified=_identified(estimator, acts, chosen, checks.rank),
        left_out=left_out,
        metadata={"penalty": penalty, "l1": l1 if penalty else None, "n_bootstrap": n_bootstrap},
        **extra,
    )


def _check(estimator: str, tikhonov: Any, penalty: Any, drifts: Any, precision: Any, n_bootstrap: int) -> None:
    if estimator not in ESTIMATORS:
        raise unknown_name("estimator", estimator, ESTIMATORS)
    if penalty not in (None, "lasso"):
        raise SetupError(f"Unknown penalty {penalty!r}; use 'lasso' or None.")
    if penalty and estimator != "response":
        raise SetupError("penalty='lasso' goes with estimator='response'.")
    if isinstance(tikhonov, str) and tikhonov != "noise":
        raise SetupError(f"tikhonov is a number, 'noise' or None; got {tikhonov!r}.")
    if isinstance(tikhonov, int | float) and tikhonov < 0:
        raise SetupError(f"tikhonov cannot be negative, got {tikhonov}.")
    if estimator == "drift" and drifts is None:
        raise SetupError("estimator='drift' needs `drifts`, those of a model; or use 'response'.")
    if estimator == "drift+targets" and precision is None:
        raise SetupError("estimator='drift+targets' needs `precision`, the inverse covariance of control cells.")
    if n_bootstrap < 0:
        raise SetupError(f"n_bootstrap cannot be negative, got {n_bootstrap}.")


def _usable(
    responses: pd.DataFrame, targets: Mapping[str, Iterable[str]] | None, sep: str | None
) -> tuple[pd.DataFrame, np.ndarray, dict[str, str]]:
    """Responses of perturbations with a measured target, what they act on, and what was left out."""
    if not isinstance(responses, pd.DataFrame):
        raise SetupError("`responses` must be a DataFrame, perturbations x genes.")
    frame = responses.copy()
    frame.index, frame.columns = frame.index.astype(str), frame.columns.astype(str)
    if not frame.index.is_unique or not frame.columns.is_unique:
        raise InputDataError("Names of perturbations and of genes must be unique in `responses`.")
    place = {g: j for j, g in enumerate(frame.columns)}
    acts = np.zeros(frame.shape, dtype=bool)
    left_out: dict[str, str] = {}
    for k, name in enumerate(frame.index):
        listed = targets.get(name, ()) if targets is not None else name.split(sep) if sep else [name]
        own = [str(g) for g in listed]
        missing = [g for g in own if g not in place]
        if missing or not own:
            left_out[name] = f"target {missing[0]} is no measured gene" if missing else "no target is named"
        acts[k, [place[g] for g in own if g in place]] = True
    kept = [k for k, name in enumerate(frame.index) if name not in left_out]
    if not kept:
        raise InputDataError(
            f"None of the {len(frame)} perturbations ({', '.join(frame.index[:5])}) targets one of the genes "
            f"({', '.join(frame.columns[:5])}, ...); name the targets by `targets`."
        )
    frame = frame.iloc[kept]
    if not np.isfinite(frame.to_numpy(dtype=np.float64)).all():
        raise InputDataError("`responses` holds values that are not finite.")
    return frame, acts[kept], left_out


def _sources(sources: Any, genes: list[str], acts: np.ndarray) -> np.ndarray:
    if isinstance(sources, str) and sources in ("perturbed", "all"):
        return np.flatnonzero(acts.any(axis=0)) if sources == "perturbed" else np.arange(len(genes))
    names = [sources] if isinstance(sources, str) else [str(s) for s in sources]
    place = {g: j for j, g in enumerate(genes)}
    for name in names:
        if name not in place:
            raise unknown_name("source", name, genes, "the genes of `responses`")
    return np.array(sorted({place[n] for n in names}))


def _series(values: pd.Series, genes: list[str], name: str) -> np.ndarray:
    found = pd.Series(values).rename(index=str).reindex(genes)
    if found.isna().any():
        raise InputDataError(f"`{name}` lacks a value for {found.index[found.isna()][0]!r}.")
    return found.to_numpy(dtype=np.float64)


def _errors(
    standard_errors: pd.DataFrame | None, control_errors: pd.Series | None, frame: pd.DataFrame
) -> tuple[np.ndarray, np.ndarray] | None:
    """Standard errors (K, d) and of the control mean (d,)."""
    if standard_errors is None:
        return None
    table = standard_errors.rename(index=str, columns=str).reindex(index=frame.index, columns=frame.columns)
    if not np.isfinite(table.to_numpy(dtype=np.float64)).all():
        raise InputDataError("`standard_errors` lacks a finite value for a perturbation or gene of `responses`.")
    shared = np.zeros(frame.shape[1])
    if control_errors is not None:
        shared = _series(control_errors, list(frame.columns), "control_errors")
    return table.to_numpy(dtype=np.float64), shared


def _penalty(
    tikhonov: Any, estimator: str, errors: tuple[np.ndarray, np.ndarray] | None, x: np.ndarray, chosen: np.ndarray
) -> float:
    if tikhonov is None:
        tikhonov = "noise" if errors is not None and estimator == "response" else None
    if tikhonov is None:
        return _DEFAULT_TIKHONOV if estimator == "response" else 0.0
    if tikhonov != "noise":
        return float(tikhonov)
    if errors is None:
        raise SetupError("tikhonov='noise' needs `standard_errors`.")
    noise = (errors[0][:, chosen] ** 2).sum() + len(x) * (errors[1][chosen] ** 2).sum()
    return float(noise / max(float((x**2).sum()), 1e-300))


def _solver(
    estimator: Estimator,
    acts: np.ndarray,
    chosen: np.ndarray,
    tau: float,
    penalty: str | None,
    l1: float,
    drifts: pd.DataFrame | None,
    precision: pd.DataFrame | None,
    frame: pd.DataFrame,
    origin: np.ndarray,
) -> Callable[[np.ndarray], np.ndarray]:
    """Responses (K, d) -> effects (S, d), rows are sources."""
    if estimator == "response":
        if penalty == "lasso":
            return lambda r: sparse_response_form(r, acts, chosen, l1, max(tau, 1e-6))
        if len(chosen) > len(acts) and tau == 0:
            raise SetupError(
                f"{len(chosen)} sources and {len(acts)} perturbations leave the effects open; use penalty='lasso' or "
                "sources='perturbed'."
            )
        return lambda r: response_form(r, acts, chosen, tau)
    if estimator == "drift":
        assert drifts is not None
        phi = drifts.rename(index=str, columns=str).reindex(index=frame.index, columns=frame.columns).to_numpy(float)
        return lambda r: drift_form(phi, r - origin, tau).T[chosen]
    assert precision is not None
    table = precision.rename(index=str, columns=str).reindex(index=frame.columns, columns=frame.columns)
    values = table.to_numpy(dtype=np.float64)
    return lambda r: directed_drift(values, r, acts, damp=tau).T[chosen]


def _identified(estimator: str, acts: np.ndarray, chosen: np.ndarray, rank: int) -> bool:
    n, d = len(chosen), acts.shape[1]
    if estimator == "response":
        # each gene that is acted on loses the perturbations that act on it
        return bool(rank == n and acts[:, chosen].any(axis=0).all())
    needed = d if estimator == "drift" else d - 1
    return bool(int(acts.any(axis=0).sum()) >= needed and rank >= min(needed, n))


def _total(matrix: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Total effects (S, d) of direct ones: change of every gene per unit change of a perturbed source."""
    square = matrix[:, chosen].T  # targets x sources
    try:
        propagated = -np.linalg.inv(square)
    except np.linalg.LinAlgError:
        propagated = -np.linalg.pinv(square)
    own = np.diag(propagated).copy()
    among = (propagated / np.where(own == 0, np.inf, own)).T  # (S, S), rows are sources
    # a gene that is no source follows the sources; its own decay is the unit
    out = among @ matrix
    out[:, chosen] = among
    return out


def _bootstrap(
    solve: Callable[[np.ndarray], np.ndarray],
    r: np.ndarray,
    errors: tuple[np.ndarray, np.ndarray] | None,
    chosen: np.ndarray,
    n: int,
    seed: int,
    names: list[str],
    genes: list[str],
) -> dict[str, pd.DataFrame]:
    from scipy.stats import norm
    from statsmodels.stats.multitest import multipletests

    if errors is None:
        raise SetupError("A bootstrap needs `standard_errors` of the responses.")
    rng = np.random.default_rng(seed)
    matrix = solve(r)
    square = np.zeros_like(matrix)
    for _ in range(n):
        # the error of the control mean is common to all responses
        shared = errors[1] * rng.standard_normal(r.shape[1])
        square += (solve(r + errors[0] * rng.standard_normal(r.shape) - shared) - matrix) ** 2
    # around the estimate, not around the mean of the draws: the bias that noise makes counts as error
    se = np.sqrt(square / n)
    p = 2 * norm.sf(np.abs(matrix) / np.where(se > 0, se, np.inf))
    p[matrix == 0] = 1.0
    own = np.zeros(matrix.shape, dtype=bool)
    own[np.arange(len(chosen)), chosen] = True
    p[own] = np.nan
    q = np.full(matrix.shape, np.nan)
    q[~own] = multipletests(p[~own], method="fdr_bh")[1]
    return {
        k: pd.DataFrame(v, index=names, columns=genes)
        for k, v in (("standard_errors", se), ("p_values", p), ("q_values", q))
    }
