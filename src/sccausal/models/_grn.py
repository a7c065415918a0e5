"""``model.grn``: the gene network a model holds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sccausal._errors import SetupError
from sccausal.grn import Network

if TYPE_CHECKING:
    from sccausal.models._base import CausalModel


class GRNAccessor:
    """Read the gene network of a trained model.

    Parameters
    ----------
    model
        The model; use ``model.grn`` instead of calling this class.

    Examples
    --------
    >>> import sccausal as scc
    >>> network = model.grn.network(top=10)
    >>> isinstance(network, scc.grn.Network), len(network.to_frame()) <= 10
    (True, True)
    """

    def __init__(self, model: CausalModel) -> None:
        self._model = model

    def network(self, *, top: int | None = None, threshold: float = 0.0, **kwargs: Any) -> Network:
        """Gene network of the model.

        Parameters
        ----------
        top
            Keep only the ``top`` edges with the largest ``|weight|``.
        threshold
            Keep only edges with ``|weight| > threshold``.
        **kwargs
            Further choices of the model; see its documentation.

        Returns
        -------
        Network. The unit of the weights stands in its ``metadata``.

        Raises
        ------
        RuntimeError
            The model is not trained.
        """
        if threshold < 0:
            raise SetupError(f"threshold is compared with |weight| and cannot be {threshold}.")
        self._model._check_if_trained(warn=False)
        network = self._model._network(**kwargs)
        network.metadata.setdefault("method", type(self._model).__name__)
        if threshold:
            frame = network.to_frame()
            network = network._with(frame[frame["weight"].abs() > threshold])
        return network if top is None else network.top(top)

    def __repr__(self) -> str:
        return f"Gene network of {type(self._model).__name__}: network()"
