"""CausCell: counterfactuals and disentanglement beside simple rules, samplers, speed, and use with few donors.

Tasks: ``concepts`` (simulator with known counterfactuals, dependence .6 and .8), ``sampler`` (distance to the data by
solver and steps), ``speed`` (a training step beside a denoiser as wide as the transcriptome; cells drawn per second),
``kang``, ``melanoma``, ``papalexi`` (a concept set to another value in held-out cells: a fifth of all, and all cells of
one combination), ``donors`` (trend with age in few donors: bootstrap with refits beside regression of donor means;
``donors-sparse``: concepts act on few genes, so that the others do not shift).

``ratio`` is the squared error of cells' changes over that of mean shift; ``ratio_above_oracle`` the same for the mean
of four draws, both less what is left to one who knows the simulator and the labels but not the noise of the cell.
``tv`` is the total variation between labels an independent classifier reads from predicted and true counterfactual
cells; leakage is in excess of the true labels, ``legible`` what one reads who knows all but the label.
"""

from __future__ import annotations

from functools import partial

from _causcell_real import REAL, real_data
from _causcell_simulated import concepts, donors
from _causcell_speed import sampler, speed
from _common import Results, parser, show

TASKS = {
    "concepts": concepts,
    "sampler": sampler,
    "speed": speed,
    "donors": donors,
    "donors-sparse": partial(donors, affected=0.05, task="donors-sparse"),
}


def run(args) -> Results:
    results = Results(args.out)
    for seed in range(args.first_seed, args.first_seed + args.seeds):
        for name in args.tasks:
            if name in REAL:
                real_data(name, REAL[name](args), results, args, seed)
            else:
                TASKS[name](results, args, seed)
    return results


def report(results: Results) -> None:
    frame = results.frame()
    for task, part in frame.groupby("task", sort=False):
        part = part.dropna(axis=1, how="all").drop(columns=["key", "task", "seed"])
        keys = [c for c in ("method", "do", "solver", "steps") if c in part]
        numbers = part.select_dtypes("number").columns.difference(keys, sort=False)
        table = (
            part.groupby(keys, sort=False)[list(numbers)].mean() if keys else part[list(numbers)].mean().to_frame().T
        )
        show(table, str(task))


def main() -> None:
    p = parser(__doc__ or "", default_out="causcell.jsonl")
    p.add_argument("--tasks", nargs="+", default=[*TASKS, *REAL], choices=[*TASKS, *REAL])
    args = p.parse_args()
    report(Results(args.out) if args.report else run(args))


if __name__ == "__main__":
    main()
