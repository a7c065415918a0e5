"""A small VAE with a graph, for tests of the training room."""

from __future__ import annotations

import anndata
import numpy as np
import pytest
import scvi
import torch
from scvi.data import AnnDataManager
from scvi.data.fields import CategoricalObsField, LayerField
from scvi.model.base import BaseModelClass
from scvi.module.base import BaseModuleClass, LossOutput
from torch import nn
from torch.distributions import Normal, kl_divergence

from sccausal.nn.adversary import DomainDiscriminator, DomainWeights, adversarial_losses
from sccausal.train import CausalTrainingMixin, augmented_lagrangian, register_lagrangian_buffers


class ToyModule(BaseModuleClass):
    """Linear VAE on log counts; ``A`` is the graph of two latent variables that must not have a cycle."""

    def __init__(self, n_input: int, n_batch: int, bad_epoch: int | None = None):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(n_input, 16), nn.ReLU(), nn.Dropout(0.1), nn.Linear(16, 4))
        self.decoder = nn.Linear(2, n_input)
        self.A = nn.Parameter(torch.full((2, 2), 0.5))
        self.discriminator = DomainDiscriminator(2, n_batch, 8, 1)
        self.weights = DomainWeights(n_batch)
        self.bad_epoch = bad_epoch
        self.calls: list[tuple] = []
        self.n_proximal = 0
        self.epoch = -1
        register_lagrangian_buffers(self)

    def parameter_groups(self, lr):
        return [{"params": self.A, "lr": lr / 5, "name": "structure"}]

    def on_epoch_start(self, epoch, max_epochs):
        self.calls.append((epoch, max_epochs))
        self.epoch = epoch

    def proximal_step(self, lr):
        self.n_proximal += 1
        self.last_proximal_lr = lr

    def constraint(self):
        return (self.A[0, 1] * self.A[1, 0]) ** 2

    def _get_inference_input(self, tensors, **kwargs):
        return {"x": tensors["X"]}

    def _get_generative_input(self, tensors, inference_outputs, **kwargs):
        return {"z": inference_outputs["z"]}

    def inference(self, x):
        mean, log_scale = self.encoder(torch.log1p(x)).chunk(2, dim=-1)
        qz = Normal(mean, log_scale.clamp(-5, 3).exp())
        return {"qz": qz, "z": qz.rsample()}

    def generative(self, z):
        return {"mean": self.decoder(z + z @ self.A)}

    def loss(self, tensors, inference_outputs, generative_outputs, kl_weight=1.0, domain_weight=1.0):
        x = torch.log1p(tensors["X"])
        qz = inference_outputs["qz"]
        rec = (generative_outputs["mean"] - x).square().mean(-1)
        kl = kl_divergence(qz, Normal(0.0, 1.0)).sum(-1) / x.shape[1]
        if self.bad_epoch is not None and self.training and self.epoch == self.bad_epoch:
            kl = kl * float("nan")
        h = self.constraint()
        adversary, confusion = adversarial_losses(
            self.discriminator, inference_outputs["z"], tensors["batch"], self.weights
        )
        total = (rec + kl_weight * kl).mean() + augmented_lagrangian(self, h)
        total = total + domain_weight * (adversary + 0.1 * confusion)
        extra = {"adversary": adversary, "confusion": confusion, "acyclicity": h}
        return LossOutput(loss=total, reconstruction_loss=rec, kl_local=kl, extra_metrics=extra)

    def sample(self, tensors):
        raise NotImplementedError

    def adversary_parameters(self):
        return self.discriminator.parameters()

    def adversary_loss(self, batch):
        with torch.no_grad():
            z = self.inference(batch["X"])["z"]
        return adversarial_losses(self.discriminator, z, batch["batch"], self.weights)[0]


class ToyModel(CausalTrainingMixin, BaseModelClass):
    """Model around :class:`ToyModule`."""

    _module_cls = ToyModule

    def __init__(self, adata, **kwargs):
        super().__init__(adata)
        self.module = self._module_cls(self.summary_stats.n_vars, self.summary_stats.n_batch, **kwargs)
        self._model_summary_string = "toy"
        self.init_params_ = self._get_init_params(locals())

    @classmethod
    def setup_anndata(cls, adata, batch_key=None, **kwargs):
        setup_method_args = cls._get_setup_method_args(**locals())
        fields = [LayerField("X", None, is_count_data=True), CategoricalObsField("batch", batch_key)]
        manager = AnnDataManager(fields=fields, setup_method_args=setup_method_args)
        manager.register_fields(adata, **kwargs)
        cls.register_manager(manager)


def toy_data() -> anndata.AnnData:
    rng = np.random.default_rng(0)
    batch = np.repeat([0, 1], 100)
    rate = np.exp(rng.normal(size=(200, 2)) @ rng.normal(size=(2, 20)) * 0.5 + batch[:, None] * 0.3 + 1.0)
    adata = anndata.AnnData(rng.poisson(rate).astype(np.float32))
    adata.obs_names = [f"cell{i}" for i in range(200)]
    adata.var_names = [f"gene{i}" for i in range(20)]
    adata.obs["batch"] = np.where(batch == 0, "a", "b")
    return adata


@pytest.fixture
def make_model():
    """Build a model; the seed makes the initial weights."""
    before = scvi.settings.seed

    def make(seed: int | None = 0, **kwargs) -> ToyModel:
        scvi.settings.seed = 0 if seed is None else seed
        adata = toy_data()
        ToyModel.setup_anndata(adata, batch_key="batch")
        model = ToyModel(adata, **kwargs)
        scvi.settings.seed = seed
        return model

    yield make
    scvi.settings.seed = before


@pytest.fixture
def fit():
    """Train quietly with small defaults."""

    def run(model, max_epochs=4, **kwargs):
        kwargs = {"batch_size": 64, "accelerator": "cpu", "enable_progress_bar": False} | kwargs
        model.train(max_epochs, **kwargs)
        return model

    return run
