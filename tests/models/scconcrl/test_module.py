"""Mathematics of the module against closed forms and known truths."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sccausal._errors import SetupError
from sccausal.models.scconcrl._components import AffineMap, DenseMap, GeneWiseMap, gene_map
from sccausal.models.scconcrl._module import ScConCRLModule
from sccausal.models.scconcrl._statistics import training_statistics
from sccausal.nn.likelihood import gaussian, negative_binomial, zero_inflated


def dag(m: int, n_edges: int, seed: int, strength: float = 0.9) -> np.ndarray:
    rng = np.random.default_rng(seed)
    A = np.zeros((m, m))
    upper = np.argwhere(np.triu(np.ones((m, m)), 1) > 0)
    for i, j in upper[rng.choice(len(upper), n_edges, replace=False)]:
        A[i, j] = rng.choice([-1, 1]) * strength
    return A


def sem_cells(A: np.ndarray, n: int, seed: int) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    return torch.tensor(rng.normal(size=(n, len(A))) @ np.linalg.inv(np.eye(len(A)) - A), dtype=torch.float32)


def batch_of(x: torch.Tensor, batch: torch.Tensor | None = None, dose: torch.Tensor | None = None) -> dict:
    n = len(x)
    out = {"X": x, "batch": torch.zeros(n, 1) if batch is None else batch}
    if dose is not None:
        out["intervention"] = dose
    return out


def loss_of(module: ScConCRLModule, tensors: dict):
    inference = module.inference(**module._get_inference_input(tensors))
    generative = module.generative(**module._get_generative_input(tensors, inference))
    return module.loss(tensors, inference, generative)


def started(x: torch.Tensor, batch: np.ndarray | None = None, dose: np.ndarray | None = None, **kwargs):
    n = len(x)
    batch = np.zeros(n, int) if batch is None else batch
    dose = np.zeros((n, 0)) if dose is None else dose
    torch.manual_seed(0)
    n_batch = int(batch.max()) + 1
    module = ScConCRLModule(x.shape[1], n_batch, dose.shape[1], n_state=5, **kwargs)
    log_counts = module.gene_likelihood != "gaussian"
    statistics = training_statistics(x.numpy(), batch, dose, None, n_batch=n_batch, n_state=5, log_counts=log_counts)
    module.start(statistics)
    return module


def fit(module: ScConCRLModule, tensors: dict, steps: int, lr: float = 0.01, fixed: tuple[str, ...] = ()) -> None:
    module.train()
    parameters = [p for n, p in module.named_parameters() if n not in fixed]
    optimiser = torch.optim.Adam(parameters, lr=lr)
    for _ in range(steps):
        optimiser.zero_grad()
        loss_of(module, tensors).loss.backward()
        optimiser.step()
    module.eval()


def elbo(module: ScConCRLModule, tensors: dict) -> float:
    with torch.no_grad():
        out = loss_of(module, tensors)
    return -float(out.reconstruction_loss_sum + out.kl_local_sum) / len(tensors["X"])


def test_elbo_rises_towards_the_true_graph():
    A = dag(12, 18, seed=1)
    x = sem_cells(A, 600, seed=2)
    scale = x.std(0)
    found = []
    for share in (0.0, 0.5, 1.0):
        module = started(x, guide_weight=0.0, acyclicity=None)
        with torch.no_grad():
            sd = module.feature_sd * module.scale
            module.graph.weight.copy_(share * torch.tensor(A, dtype=torch.float32) * sd[:, None] / sd)
        fit(module, batch_of(x), 150, fixed=("graph.weight",))
        found.append(elbo(module, batch_of(x)))
    assert scale.isfinite().all()
    assert found[0] + 0.05 < found[1] < found[2] - 0.02, found


def test_regulator_rows_give_the_loss_and_gradient_of_the_full_form():
    A = dag(10, 12, seed=0)
    x = sem_cells(A, 64, seed=1)
    regulators = np.array([0, 2, 3, 7])
    small = started(x, regulators=regulators)
    full = started(x)
    with torch.no_grad():
        small.graph.weight.copy_(torch.randn_like(small.graph.weight) * 0.2)
        full.load_state_dict({k: v for k, v in small.state_dict().items() if not k.startswith("graph.")}, strict=False)
        full.graph.weight.zero_()
        full.graph.weight[torch.tensor(regulators)] = small.graph.matrix()
    one, two = loss_of(small, batch_of(x)), loss_of(full, batch_of(x))
    torch.testing.assert_close(one.loss, two.loss)
    one.loss.backward()
    two.loss.backward()
    torch.testing.assert_close(
        small.graph.weight.grad, full.graph.weight.grad[torch.tensor(regulators)], rtol=1e-4, atol=1e-6
    )


def test_propagate_undoes_exogenous():
    x = sem_cells(dag(8, 8, seed=3), 20, seed=4)
    module = started(x, batch=np.arange(20) % 2, regulators=np.array([1, 4, 5]))
    with torch.no_grad():
        module.graph.weight.copy_(torch.randn_like(module.graph.weight) * 0.3)
        z, nb = torch.randn(20, 8), torch.randn(20, module.n_domain)
        torch.testing.assert_close(module.propagate(module.exogenous(z, nb), nb), z, rtol=1e-4, atol=1e-4)


def test_kl_of_genes_is_what_sampling_gives():
    x = sem_cells(dag(6, 7, seed=5), 8, seed=6)
    module = started(x, batch=np.arange(8) % 2)
    with torch.no_grad():
        module.graph.weight.copy_(torch.randn_like(module.graph.weight) * 0.3)
        module.log_exogenous_var.copy_(torch.randn(6) * 0.3)
        module.eval()
        out = module.inference(x, torch.zeros(8, 0))
        exact = module.kl_genes(out)
        s, sigma = torch.exp(0.5 * module.log_posterior_var), torch.exp(0.5 * module.log_exogenous_var)
        log_det = torch.linalg.slogdet(torch.eye(6) - module.graph.dense())[1]
        draws = []
        for _ in range(4000):
            z = out["h"] + s * torch.randn_like(out["h"])
            nb = out["nb_mean"] + out["nb_var"].sqrt() * torch.randn_like(out["nb_mean"])
            log_q = torch.distributions.Normal(out["h"], s).log_prob(z).sum(1)
            log_p = torch.distributions.Normal(0.0, sigma).log_prob(module.exogenous(z, nb)).sum(1) + log_det
            draws.append(log_q - log_p)
    sampled = torch.stack(draws)
    error = sampled.std(0) / len(draws) ** 0.5
    assert ((exact - sampled.mean(0)).abs() < 5 * error + 1e-3).all()


def test_hinges_have_the_gradient_of_their_formula():
    torch.manual_seed(0)
    layer = AffineMap(5, 3).double()
    with torch.no_grad():
        layer.bend.normal_()
    x = torch.randn(7, 5, dtype=torch.double, requires_grad=True)
    direct = layer.intercept + x * layer.slope
    for knot, weight in zip(layer.knots, layer.bend, strict=True):
        direct = direct + torch.relu(x - knot) * weight
    torch.testing.assert_close(layer(x), direct)
    weights = torch.randn_like(direct)
    inputs = [x, *layer.parameters()]
    for a, b in zip(
        torch.autograd.grad((layer(x) * weights).sum(), inputs),
        torch.autograd.grad((direct * weights).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("kind", ["affine", "genewise"])
def test_gene_wise_maps_do_not_mix_genes(kind):
    layer = gene_map(kind, 4, width=3, n_hidden=8)
    with torch.no_grad():
        for p in layer.parameters():
            p.normal_()
    jacobian = torch.autograd.functional.jacobian(lambda v: layer(v[None])[0], torch.randn(4))
    assert torch.count_nonzero(jacobian - torch.diag(jacobian.diagonal())) == 0
    assert isinstance(layer, AffineMap | GeneWiseMap)


def test_unknown_map_is_refused():
    assert isinstance(gene_map("dense", 4, width=3, n_hidden=8), DenseMap)
    with pytest.raises(SetupError, match="affine"):
        gene_map("linear", 4, width=3, n_hidden=8)  # type: ignore[arg-type]


def test_likelihoods_are_those_of_the_distributions():
    x = torch.tensor([[0.0, 3.0, 11.0], [1.0, 0.0, 2.0]])
    mean, log_theta = torch.tensor([[0.5, 4.0, 9.0], [2.0, 0.1, 1.0]]), torch.tensor([0.3, 1.0, -0.5])
    theta = log_theta.exp()
    reference = torch.distributions.NegativeBinomial(theta, logits=(mean / theta).log()).log_prob(x)
    torch.testing.assert_close(negative_binomial(x, mean, log_theta), reference, rtol=1e-4, atol=1e-4)
    pi = torch.tensor([0.2, 0.5, 0.1])
    mixed = zero_inflated(x, mean, log_theta, torch.logit(pi))
    zero = torch.log(pi + (1 - pi) * reference.exp())
    torch.testing.assert_close(mixed, torch.where(x == 0, zero, torch.log(1 - pi) + reference), rtol=1e-4, atol=1e-4)
    log_var, extra = torch.tensor([0.1, -0.3, 0.4]), torch.tensor([0.2, 0.0, 0.5])
    normal = torch.distributions.Normal(mean, torch.exp(0.5 * log_var))
    constant = 0.5 * 3 * np.log(2 * np.pi)
    torch.testing.assert_close(gaussian(x, mean, log_var), normal.log_prob(x).sum(1) + constant)
    draws = mean + extra.sqrt() * torch.randn(20000, 2, 3, generator=torch.Generator().manual_seed(0))
    expected = torch.distributions.Normal(draws, torch.exp(0.5 * log_var)).log_prob(x).sum(-1).mean(0) + constant
    torch.testing.assert_close(gaussian(x, mean, log_var, extra), expected, rtol=0.02, atol=0.05)


def _domains(n: int = 400, m: int = 15, seed: int = 0):
    rng = np.random.default_rng(seed)
    x = sem_cells(dag(m, 15, seed), n, seed)
    batch = np.arange(n) % 2
    dose = (rng.random(n) < 0.5).astype(float)[:, None]
    x = x + torch.tensor(batch[:, None] * rng.normal(size=m) + dose * rng.normal(size=m), dtype=torch.float32)
    return x, batch, dose


def test_every_term_carries_a_share_of_the_gradient():
    x, batch, dose = _domains()
    module = started(x, batch, dose, sparsity="frobenius", condition_adversary_weight=1.0, acyclicity="logdet")
    tensors = batch_of(x, torch.tensor(batch)[:, None], torch.tensor(dose, dtype=torch.float32))
    # early in training: the gradient of a term that has reached its aim vanishes, whatever its weight
    fit(module, tensors, 20)
    module.train()
    inference = module.inference(**module._get_inference_input(tensors))
    generative = module.generative(**module._get_generative_input(tensors, inference))
    out = module.loss(tensors, inference, generative)
    terms = module.weighted_terms(inference, tensors, tensors["intervention"])
    assert {"guide", "sparsity", "acyclicity", "population", "batch_adversary", "condition_adversary"} <= set(terms)
    elbo_loss = out.reconstruction_loss_sum / len(x) + out.kl_local_sum / len(x)

    def norm(value: torch.Tensor) -> float:
        grads = torch.autograd.grad(value, list(module.parameters()), retain_graph=True, allow_unused=True)
        return float(sum((g**2).sum() for g in grads if g is not None)) ** 0.5

    elbo = norm(elbo_loss)
    shares = {name: norm(value) / elbo for name, value in terms.items()}
    for name, share in shares.items():
        assert share > 0.01, (name, shares)


def test_switches_of_the_ablation():
    x, batch, dose = _domains()
    tensors = batch_of(x, torch.tensor(batch)[:, None], torch.tensor(dose, dtype=torch.float32))
    module = started(
        x, batch, dose, batch_adversary_weight=0.0, guide_weight=0.0, acyclicity=None, population_weight=0.0,
        sparsity_weight=0.0,
    )  # fmt: skip
    module.train()
    assert loss_of(module, tensors).extra_metrics == {}
    paper = started(x, batch, dose, response="paper", guide_input="raw", loss_scale="paper", adversary="reversal")
    paper.train()
    out = loss_of(paper, tensors)
    assert "population" not in out.extra_metrics and torch.isfinite(out.loss)
    alone = started(x, guide_weight=0.0)
    assert alone.n_domain == 0 and torch.isfinite(loss_of(alone, batch_of(x)).loss)


def test_the_start_predicts_the_mean_change():
    x, batch, dose = _domains(n=2000)
    module = started(x, batch, dose)
    rows = module.populations
    with torch.no_grad():
        predicted = module.predicted_change(rows.control, rows.dose, rows.state)
    error = (predicted - rows.change).square().sum() / rows.change.square().sum()
    assert error < 0.1
