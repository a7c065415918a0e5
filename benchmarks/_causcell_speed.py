"""CausCell: distance to the data by solver and steps, seconds of a training step and of drawing cells."""

from __future__ import annotations

import numpy as np
import scvi
import torch
from _causcell import CONCEPTS, DAG, bare, fit
from _causcell_simulated import simulated
from _common import Results, clock
from anndata import AnnData

import sccausal as scc
from sccausal.metrics import energy_distance, variance_ratio
from sccausal.models.causcell._module import SIGMA_HIGH, SIGMA_LOW
from sccausal.models.causcell._steps import Settings, draw_cells


def sampler(results: Results, args, seed: int) -> None:
    if f"sampler/ddpm/1000/{seed}" in results.done:
        return
    train, test, _ = simulated(args, 0.8, seed)
    curve(results, fit(train, CONCEPTS, seed, args, DAG), test, seed)


def curve(results: Results, model, test: AnnData, seed: int) -> None:
    """Distance to held-out cells of cells drawn for their tokens, by solver and number of steps."""
    a = (test.obs["a"] == "a1").to_numpy()
    moved = energy_distance(test.X[a], test.X[~a])
    label_mean = energy_distance(np.repeat(test.X.mean(0, keepdims=True), len(test), 0), test.X)
    with torch.inference_mode():
        tokens = model.module.embed(model._exogenous(bare(test), n_samples=1)[0])
        plan = [(s, n) for s in ("ddim", "dpm++2m", "sde-dpm++2m", "heun") for n in (10, 20, 50)] + [("ddpm", 1000)]
        for solver, n in plan:
            settings = Settings(n, solver, "shared", SIGMA_LOW, SIGMA_HIGH)
            with clock() as t:
                drawn = np.maximum(draw_cells(model.module, tokens, settings, seed, None), 0)
            results.add(
                f"sampler/{solver}/{n}/{seed}", task="sampler", solver=solver, steps=n, seed=seed,
                energy=energy_distance(drawn, test.X), variance=variance_ratio(drawn, test.X), seconds=t["seconds"],
                a0_to_a1=moved, label_mean=label_mean,
            )  # fmt: skip


class WideDenoiser(torch.nn.Module):
    """As many attention blocks with one query as wide as the transcriptome, as in the paper."""

    def __init__(self, n_genes: int, n_layers: int, n_latent: int) -> None:
        super().__init__()
        self.blocks = torch.nn.ModuleList()
        for _ in range(n_layers):
            attend = torch.nn.MultiheadAttention(n_genes, 4, kdim=n_latent, vdim=n_latent, batch_first=True)
            net = torch.nn.Sequential(
                torch.nn.Linear(n_genes, 4 * n_genes), torch.nn.SiLU(), torch.nn.Linear(4 * n_genes, n_genes)
            )
            self.blocks.append(torch.nn.ModuleList([attend, net]))

    def forward(self, x: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        h = x.unsqueeze(1)
        for attend, net in self.blocks:
            h = h + attend(h, z, z, need_weights=False)[0]
            h = h + net(h)
        return h.squeeze(1)


def count(net: torch.nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def speed(results: Results, args, seed: int) -> None:
    key = f"speed/{seed}"
    if key in results.done:
        return
    n = 300 if args.small else 2000
    rng = np.random.default_rng(seed)
    adata = AnnData(rng.random((n, n), dtype=np.float32))
    for name in CONCEPTS:
        adata.obs[name] = rng.permutation(np.arange(n) % 2).astype(str)
    scvi.settings.seed = seed
    scc.CausCell.setup_anndata(adata, concept_keys=CONCEPTS)
    model = scc.CausCell(adata, dag=DAG)
    module = model.module.train()
    x = torch.as_tensor(adata.X[:256])
    z = torch.randn(len(x), 5, 32)
    sigma = torch.ones(len(x))
    wide = WideDenoiser(n, len(module.denoiser.blocks), 32)

    def step(net, *inputs) -> float:
        optimizer = torch.optim.Adam(net.parameters())
        seconds = []
        for _ in range(3):
            with clock() as t:
                optimizer.zero_grad()
                net(*inputs).square().mean().backward()
                optimizer.step()
            seconds.append(t["seconds"])
        return min(seconds)

    class Narrow(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = module.denoiser

        def forward(self, x, z):
            return self.net(x, sigma, self.net.condition(z))

    narrow_step, wide_step = step(Narrow(), x, z), step(wide, x, z)
    module.eval()
    with torch.inference_mode(), clock() as t:
        draw_cells(module, torch.randn(n, 5, 32), Settings(20, "dpm++2m", "shared", SIGMA_LOW, SIGMA_HIGH), 0, None)
    results.add(
        key, task="speed", seed=seed, genes=n, threads=torch.get_num_threads(),
        parameters=count(module), wide_parameters=count(wide),
        step=narrow_step, wide_step=wide_step, draw_seconds=t["seconds"], drawn_cells=n,
    )  # fmt: skip
