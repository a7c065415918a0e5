"""A small linear model that keeps the contract, so that the base can be tested without any method."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scvi.module.base import BaseModuleClass, LossOutput, auto_move_data
from torch import nn
from torch.distributions import Normal, kl_divergence

from sccausal.data import KEYS
from sccausal.grn import Network
from sccausal.models import CausalModel, Check


class ToyModule(BaseModuleClass):
    """x ~ N(W z + B batch + E u, s), with a linear encoder."""

    def __init__(self, n_input: int, n_batch: int, n_targets: int, n_latent: int = 4) -> None:
        super().__init__()
        self.mean = nn.Linear(n_input, n_latent)
        self.log_scale = nn.Parameter(torch.zeros(n_latent))
        self.decoder = nn.Linear(n_latent, n_input)
        self.batch_shift = nn.Parameter(torch.zeros(n_batch, n_input))
        self.effect = nn.Parameter(torch.zeros(n_targets, n_input))
        self.log_sigma = nn.Parameter(torch.zeros(n_input))
        self.register_buffer("seen", torch.zeros(n_batch))

    def _get_inference_input(self, tensors, **_):
        return {"x": tensors[KEYS.X], "u": tensors[KEYS.INTERVENTION], "batch": tensors[KEYS.BATCH]}

    @auto_move_data
    def inference(self, x, u, batch, n_samples=1):
        # the effect is taken off first, so that z does not repeat it
        qz = Normal(self.mean(x - u @ self.effect), self.log_scale.exp() + 1e-4)
        return {"qz": qz, "z": qz.rsample()}

    def _get_generative_input(self, tensors, inference_outputs, **_):
        return {"z": inference_outputs["z"], "u": tensors[KEYS.INTERVENTION], "batch": tensors[KEYS.BATCH]}

    @auto_move_data
    def generative(self, z, u, batch):
        shift = self.batch_shift[batch.long().squeeze(-1)]
        return {"px": Normal(self.decoder(z) + shift + u @ self.effect, self.log_sigma.exp() + 1e-3)}

    def loss(self, tensors, inference_outputs, generative_outputs, kl_weight=1.0, ridge=0.0):
        x = tensors[KEYS.X]
        n_genes = x.shape[1]
        reconstruction = -generative_outputs["px"].log_prob(x).sum(-1) / n_genes
        qz = inference_outputs["qz"]
        kl = kl_divergence(qz, Normal(0.0, 1.0)).sum(-1) / n_genes
        penalty = ridge * self.effect.pow(2).mean()
        loss = (reconstruction + kl_weight * kl).mean() + penalty
        return LossOutput(
            loss=loss, reconstruction_loss=reconstruction, kl_local=kl, extra_metrics={"ridge": penalty.detach()}
        )

    def sample(self, *args: Any, **kwargs: Any) -> None:
        raise NotImplementedError


class ToyModel(CausalModel):
    """Linear VAE with additive effects of batches and interventions."""

    capabilities = frozenset({"perturbation", "grn"})
    representations = ("latent", "reconstruction")
    _module_cls = ToyModule

    def __init__(self, adata=None, registry=None, n_latent: int = 4, **kwargs: Any) -> None:
        super().__init__(adata, registry)
        self.module = self._module_cls(
            self.summary_stats.n_vars,
            self.summary_stats.n_batch,
            self.summary_stats["n_intervention"],
            n_latent,
            **kwargs,
        )
        if self.adata is not None:
            # from the mean of the data, effects need not explain the level of expression
            level = np.asarray(self.adata_manager.get_from_registry(KEYS.X).mean(axis=0)).ravel()
            self.module.decoder.bias.data = torch.as_tensor(level, dtype=torch.float32)
        self._model_summary_string = f"Toy model with {n_latent} latent dimensions"
        self.init_params_ = self._get_init_params(locals())

    @classmethod
    def setup_anndata(
        cls,
        adata,
        *,
        layer=None,
        batch_key=None,
        labels_key=None,
        intervention_key=None,
        control=None,
        sep="+",
        **kwargs,
    ):
        setup_method_args = cls._get_setup_method_args(**locals())
        cls._register(adata, setup_method_args, uses={"batch", "labels", "intervention"}, is_count_data=False, **kwargs)

    def _encode(self, tensors, representation):
        latent = self.module.inference(**self.module._get_inference_input(tensors))["qz"].loc
        return latent if representation == "latent" else self.module.decoder(latent)

    def _predict_cells(self, adata, row, *, condition, time, n_samples, seed, batch_size):
        dose = torch.as_tensor(row, device=self.module.effect.device)[None]
        draws: list[list[np.ndarray]] = [[] for _ in range(n_samples)]
        for tensors in self._make_data_loader(adata, batch_size=batch_size):
            z = self.module.inference(**self.module._get_inference_input(tensors))["qz"].loc
            px = self.module.generative(z, dose, tensors[KEYS.BATCH].to(z.device))["px"]
            for draw in draws:
                draw.append((px.loc if n_samples == 1 else px.sample()).cpu().numpy())
        return np.concatenate([np.concatenate(d) for d in draws])

    def _network(self, **kwargs: Any) -> Network:
        genes = [str(g) for g in self.get_var_names()]
        regulators = [t for t in self.codec.targets if t in genes]
        rows = [self.codec.targets.index(t) for t in regulators]
        weights = self.module.effect.detach().cpu().numpy()[rows]
        return Network.from_matrix(weights, genes, regulators)

    def _assumptions(self) -> list[Check]:
        share = float((self.adata_manager.get_from_registry(KEYS.INTERVENTION) == 0).all(axis=1).mean())
        verdict = "holds" if share > 0.05 else "violated"
        return [
            Check("control cells", "Enough cells are untreated.", True, verdict, share, "Share of control cells."),
            Check("linearity", "Effects add up.", False, "unknown", None, "Not visible in single interventions."),
        ]


class BareModel(ToyModel):
    """A model that can predict nothing and holds no network."""

    capabilities = frozenset()


def toy_data(seed: int = 0, n_cells: int = 300, n_genes: int = 12) -> AnnData:
    """Cells with two known additive effects, in two batches; ``uns["effects"]`` holds the truth (targets, genes)."""
    rng = np.random.default_rng(seed)
    genes = [f"g{i}" for i in range(n_genes)]
    labels = np.array(["control", "g0", "g1", "g0+g1"])[rng.integers(0, 4, n_cells)]
    batch = np.array(["a", "b"])[rng.integers(0, 2, n_cells)]
    effects = np.zeros((2, n_genes))
    effects[0, 3:6], effects[1, 6:9] = 3.0, -3.0
    dose = np.stack([["g0" in v for v in labels], ["g1" in v for v in labels]], axis=1).astype(float)
    values = rng.normal(size=(n_cells, 2)) @ rng.normal(size=(2, n_genes)) * 0.5
    values += 10 + (batch == "b")[:, None] + dose @ effects + 0.3 * rng.normal(size=values.shape)
    obs = pd.DataFrame({"perturbation": labels, "batch": batch, "cell_type": "T"})
    obs.index = [f"cell{i}" for i in range(n_cells)]
    return AnnData(values.astype(np.float32), obs=obs, var=pd.DataFrame(index=genes), uns={"effects": effects})


TOY_SETUP = {
    "batch_key": "batch",
    "labels_key": "cell_type",
    "intervention_key": "perturbation",
    "control": "control",
}
TOY_TRAIN = {
    "max_epochs": 25,
    "batch_size": 64,
    "accelerator": "cpu",
    "enable_progress_bar": False,
    "plan_kwargs": {"lr": 0.03},
}
