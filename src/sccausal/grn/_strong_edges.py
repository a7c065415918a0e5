"""Where strong edges begin: two Gaussians on the logarithm of the weights."""

from __future__ import annotations

import warnings
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from sccausal._errors import InputDataError, SetupError
from sccausal.grn._network import Network

_FEWEST_EDGES = 20
_CLEAR = 10.0  # a gain in BIC that is usually called very strong


@dataclass(frozen=True)
class EdgeMixture:
    """Two Gaussians on ``log|weight|``, the weak one first.

    Parameters
    ----------
    means, sds, shares
        Of the two components; natural logarithm.
    cut
        ``|weight|`` at which the strong component overtakes the weak one.
    fraction
        Share of the edges at or above the cut.
    bic_gain
        BIC of one Gaussian minus that of two: where it is not above 10, there is no good sign of two groups, and the
        cut has no meaning of its own.
    n_edges
        Number of edges with a weight that is not zero.

    Examples
    --------
    >>> import numpy as np
    >>> import sccausal as scc
    >>> rng = np.random.default_rng(0)
    >>> weights = np.where(rng.random((20, 20)) < 0.2, 1.0, 0.01) * rng.lognormal(sigma=0.3, size=(20, 20))
    >>> network = scc.grn.Network.from_matrix(weights, [f"g{i}" for i in range(20)])
    >>> mixture = scc.grn.edge_mixture(network)
    >>> mixture.two_groups, round(mixture.fraction, 1)
    (True, 0.2)
    """

    means: tuple[float, float]
    sds: tuple[float, float]
    shares: tuple[float, float]
    cut: float
    fraction: float
    bic_gain: float
    n_edges: int

    @property
    def two_groups(self) -> bool:
        """Whether two Gaussians describe the weights clearly better than one."""
        return self.bic_gain > _CLEAR

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for ``uns`` and JSON."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    def density(self, log_weight: np.ndarray) -> np.ndarray:
        """Weighted density of each component at ``log|weight|``, (2, n)."""
        from scipy.stats import norm

        x = np.asarray(log_weight, dtype=float)
        return np.stack([w * norm.pdf(x, m, s) for w, m, s in zip(self.shares, self.means, self.sds, strict=True)])


def edge_mixture(network: Network, *, seed: int = 0) -> EdgeMixture:
    """Fit two Gaussians to ``log|weight|`` and find where they cross.

    Parameters
    ----------
    network
        At least 20 edges with a weight that is not zero.
    seed
        Seed of the fit's restarts.

    Returns
    -------
    EdgeMixture

    Warns
    -----
    UserWarning
        Two Gaussians describe the weights hardly better than one; the cut is then arbitrary.

    Raises
    ------
    sccausal._errors.InputDataError
        Too few edges, all weights have one size, or the components do not cross between their means.

    Examples
    --------
    >>> import numpy as np
    >>> import sccausal as scc
    >>> rng = np.random.default_rng(0)
    >>> weights = np.where(rng.random((20, 20)) < 0.2, 1.0, 0.01) * rng.lognormal(sigma=0.3, size=(20, 20))
    >>> network = scc.grn.Network.from_matrix(weights, [f"g{i}" for i in range(20)])
    >>> scc.grn.edge_mixture(network).two_groups
    True
    """
    from sklearn.mixture import GaussianMixture

    weight = network.to_frame()["weight"].abs().to_numpy()
    logs = np.log(weight[weight > 0])[:, None]
    if len(logs) < _FEWEST_EDGES or np.ptp(logs) < 1e-9:
        raise InputDataError(
            f"A mixture needs {_FEWEST_EDGES} edges of different weight, found {len(logs)}; name a fraction of "
            "edges to keep."
        )
    two = GaussianMixture(2, n_init=3, random_state=seed, reg_covar=1e-6, tol=1e-4, max_iter=300).fit(logs)
    one = GaussianMixture(1, reg_covar=1e-6).fit(logs)
    gain = float(one.bic(logs) - two.bic(logs))
    order = np.argsort(two.means_[:, 0])
    means, sds = two.means_[order, 0], np.sqrt(two.covariances_[order, 0, 0])
    shares = two.weights_[order]
    cut = float(np.exp(_crossing(means, sds, shares)))
    mixture = EdgeMixture(
        means=(float(means[0]), float(means[1])),
        sds=(float(sds[0]), float(sds[1])),
        shares=(float(shares[0]), float(shares[1])),
        cut=cut,
        fraction=float(np.mean(np.exp(logs) >= cut)),
        bic_gain=gain,
        n_edges=len(logs),
    )
    if not mixture.two_groups:
        warnings.warn(
            f"The sizes of the weights are hardly two groups (gain in BIC {gain:.1f}): the cut between strong and weak "
            "edges is arbitrary. Consider naming a fraction.",
            stacklevel=2,
        )
    return mixture


def strong_edges(network: Network, fraction: float | None = None, *, seed: int = 0) -> Network:
    """Keep the strong edges of a network.

    Parameters
    ----------
    network
        Network, best filtered for significance before.
    fraction
        Share of the edges with the largest ``|weight|`` to keep, in (0, 1]; ``None`` cuts where the two Gaussians of
        :func:`edge_mixture` cross.
    seed
        Seed of the mixture.

    Returns
    -------
    Network with the same genes and regulators; ``metadata["strong_edges"]`` says where the cut was made.

    Raises
    ------
    sccausal._errors.SetupError
        The fraction is out of range.
    sccausal._errors.InputDataError
        As for :func:`edge_mixture`.

    Examples
    --------
    >>> import pandas as pd
    >>> import sccausal as scc
    >>> edges = pd.DataFrame({"source": list("AABB"), "target": list("BCCD"), "weight": [2.0, 0.1, -1.0, 0.2]})
    >>> scc.grn.strong_edges(scc.grn.Network(edges), fraction=0.5).to_frame()
      source target  weight
    0      A      B     2.0
    1      B      C    -1.0
    """
    if fraction is None:
        mixture = edge_mixture(network, seed=seed)
        frame = network.to_frame()
        kept = network._with(frame[frame["weight"].abs() >= mixture.cut])
        kept.metadata["strong_edges"] = mixture.to_dict()
        return kept
    if not 0 < fraction <= 1:
        raise SetupError(f"`fraction` of edges to keep lies in (0, 1], got {fraction}.")
    kept = network.top(int(np.ceil(fraction * len(network))))
    kept.metadata["strong_edges"] = {"fraction": float(fraction)}
    return kept


def _crossing(means: np.ndarray, sds: np.ndarray, shares: np.ndarray) -> float:
    """Point between the two means at which the weighted densities are equal."""
    precision = 1 / sds**2
    log_height = np.log(shares / sds)
    a = 0.5 * (precision[0] - precision[1])
    b = means[1] * precision[1] - means[0] * precision[0]
    c = 0.5 * (precision[0] * means[0] ** 2 - precision[1] * means[1] ** 2) + log_height[1] - log_height[0]
    roots = np.roots([a, b, c]) if abs(a) > 1e-12 else np.array([-c / b])
    real = roots[np.isreal(roots)].real
    between = real[(real > means[0]) & (real < means[1])]
    if not len(between):
        raise InputDataError(
            "The two groups of weights lie within each other, their densities do not cross between the means; name a "
            "fraction of edges to keep."
        )
    return float(between[0])
