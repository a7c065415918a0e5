"""Write the saved model of a release: ``make_saved_model.py VERSION``; run once per release and commit the files."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
from contract_cases import CASES

HERE = Path(__file__).parents[1] / "data" / "saved"


def main() -> None:
    case = next(c for c in CASES if c.name == "scconcrl")
    case = replace(case, init={"n_hidden": 16, "n_state": 5, "n_domain_latent": 4})
    adata = case.data(0)[::4].copy()
    adata = adata[:, adata.X.toarray().std(axis=0) > 0][:, :30].copy()
    model = case.fresh(adata=adata)
    model.train(**{**case.train, "max_epochs": 2})
    folder = HERE / sys.argv[1] / case.model.__name__
    model.save(folder, save_anndata=True, overwrite=True, compression="gzip")
    intervention = case.pair[0]
    np.savez_compressed(
        folder / "expected.npz",
        latent=model.get_latent_representation(),
        intervention=intervention,
        predicted=np.asarray(model.perturbation.predict(interventions=[intervention]).X),
    )


if __name__ == "__main__":
    main()
