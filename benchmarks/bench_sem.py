"""SEM solve plus acyclicity penalty, forward and backward, against explicit inverse plus matrix exponential (B10)."""

from __future__ import annotations

import pandas as pd
import torch
from _common import Results, clock, parser, show

from sccausal.nn.graph import SEMGraph


def naive(weight: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """As commonly written: an explicit inverse, and the trace of a matrix exponential, by plain autograd."""
    m = weight.shape[0]
    z = noise @ torch.linalg.inv(torch.eye(m) - weight)
    return z.square().mean() + torch.linalg.matrix_exp(weight * weight).diagonal().sum() - m


def ours(graph: SEMGraph, noise: torch.Tensor) -> torch.Tensor:
    return graph.solve(noise).square().mean() + graph.penalty("logdet")


def seconds(step, parameter: torch.Tensor, repeats: int) -> float:
    """Median seconds of forward and backward, after one step that warms caches (none where one step takes minutes)."""
    taken = []
    for r in range(repeats + (repeats > 1)):
        parameter.grad = None
        with clock() as t:
            step().backward()
        if r or repeats == 1:
            taken.append(t["seconds"])
    return float(pd.Series(taken).median())


def run(args) -> Results:
    results = Results(args.out)
    torch.set_num_threads(args.threads)
    for m in (500,) if args.small else (500, 1000, 2000):
        for seed in range(args.first_seed, args.first_seed + args.seeds):
            key = f"sem/{m}/{seed}"
            if key in results.done:
                continue
            torch.manual_seed(seed)
            noise = torch.randn(128, m)
            full, few = SEMGraph(m), SEMGraph(m, range(200))
            plain = full.dense().detach().clone().requires_grad_()
            times = {
                "naive": seconds(lambda p=plain, n=noise: naive(p, n), plain, 3 if m < 2000 else 1),
                "full": seconds(lambda g=full, n=noise: ours(g, n), full.weight, 7),
                "regulators_200": seconds(lambda g=few, n=noise: ours(g, n), few.weight, 7),
            }
            results.add(key, m=m, seed=seed, threads=args.threads, batch=128, seconds=times)
    return results


def report(results: Results) -> None:
    rows = [{"genes": r["m"], **r["seconds"]} for r in results.rows if r["key"].startswith("sem/")]
    table = pd.DataFrame(rows).groupby("genes").median()
    table["full: times faster"] = table["naive"] / table["full"]
    table["200 regulators: times faster"] = table["naive"] / table["regulators_200"]
    show(table, "SEM solve + penalty, forward + backward (seconds, median over seeds)", digits=4)


if __name__ == "__main__":
    p = parser(__doc__, default_out="sem.jsonl")
    p.add_argument("--threads", type=int, default=2)
    arguments = p.parse_args()
    report(Results(arguments.out) if arguments.report else run(arguments))
