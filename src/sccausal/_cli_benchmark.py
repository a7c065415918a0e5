"""Command line of the benchmark: ``sccausal benchmark run | report | list | export``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from anndata import AnnData

# Heavy imports stand in the commands: `sccausal --help` answers at once.

app = typer.Typer(
    name="benchmark",
    help="Judge models and simple rules on tasks with known answers.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)

TaskName = Annotated[str, typer.Argument(help="Task; `sccausal benchmark list` names them.", show_default=False)]
Folder = Annotated[
    Path | None, typer.Option(help="Folder of the real data sets; default: the environment variable SCCAUSAL_DATA.")
]
KeyPairs = Annotated[
    str | None,
    typer.Option(
        "--keys", help="Columns of a file of your own: condition_key=condition,control=ctrl,labels_key=cell_type"
    ),
]
Small = Annotated[bool, typer.Option("--small", help="The shortest run of every step: a check, not a result.")]


@app.command()
def run(
    task: TaskName,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the results; a killed run continues in it.")],
    model: Annotated[
        list[str] | None,
        typer.Option("--model", "-m", help="Model; may be repeated. Default: all that stand. 'none': rules alone."),
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(
            "--data",
            "-d",
            help="Data set by name, 'all', or a file .h5ad with --keys; may be repeated. Default: "
            "the first, simulated one.",
        ),
    ] = None,
    keys: KeyPairs = None,
    folder: Folder = None,
    seeds: Annotated[int, typer.Option(help="Number of seeds.")] = 5,
    first_seed: Annotated[int, typer.Option(help="First seed.")] = 0,
    small: Small = False,
    predictions: Annotated[
        list[str] | None,
        typer.Option(help="Predictions from elsewhere: FILE or NAME=FILE, .h5ad in the prediction schema."),
    ] = None,
    report: Annotated[bool, typer.Option(help="Write the report at the end.")] = True,
) -> None:
    """Run a task for models, simple rules and reference lines; one JSON per run."""
    import logging

    from rich.console import Console

    from sccausal import benchmark
    from sccausal._steps import quiet_libraries

    # rules say for every combination what stands in for a target they have not seen
    logging.getLogger("sccausal.baselines").setLevel(logging.ERROR)
    models = None if not model else [] if model == ["none"] else model
    console = Console()
    with quiet_libraries():
        records = benchmark.run(
            task, out, models=models, data=_data(data, keys), folder=folder, seeds=seeds, first_seed=first_seed,
            small=small, predictions=_predictions(predictions),
        )  # fmt: skip
    failed = [r for r in records if r["status"] != "done"]
    console.print(f"{len(records) - len(failed)} of {len(records)} runs finished; results are in {out}.")
    for r in failed:
        message = str(r["error"]).strip().splitlines()[-1]
        console.print(f"  {r['method']} on {r['dataset']}, {r['case']}: {message}", markup=False)
    if report and len(failed) < len(records):
        _report(out, console)
    if failed:
        raise typer.Exit(1)


@app.command()
def report(
    out: Annotated[Path, typer.Argument(help="Folder of `sccausal benchmark run`.", show_default=False)],
) -> None:
    """Write report.md and report.html with tables and figures."""
    from rich.console import Console

    _report(out, Console())


@app.command("list")
def list_tasks(
    task: Annotated[str | None, typer.Argument(help="Show the data sets and methods of one task.")] = None,
    folder: Folder = None,
) -> None:
    """Name the tasks, or the data sets and methods of one."""
    from rich.console import Console
    from rich.table import Table

    from sccausal import benchmark
    from sccausal.benchmark._folder import available

    console, place = Console(), benchmark.data_folder(folder)
    if task is None:
        table = Table("task", "question", "data sets", box=None)
        for name in benchmark.TASK_NAMES:
            found = benchmark.get_task(name)
            table.add_row(name, found.question, ", ".join(d.name for d in found.datasets))
        console.print(table)
        return
    chosen = benchmark.get_task(task)
    console.print(f"{chosen.question}\nA method returns: {chosen.output}\n", markup=False)
    table = Table("data set", "there", "what it is", box=None)
    for d in chosen.datasets:
        table.add_row(d.name, "yes" if available(d, place) else f"needs {d.file}", d.note)
    console.print(table)
    table = Table("method", "kind", box=None)
    for m in benchmark.methods(task).values():
        table.add_row(m.name, m.kind)
    console.print(table)


@app.command()
def export(
    task: TaskName,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write.")],
    data: Annotated[str | None, typer.Option("--data", "-d", help="Data set by name, or a file .h5ad.")] = None,
    keys: KeyPairs = None,
    folder: Folder = None,
    seed: Annotated[int, typer.Option(help="Seed.")] = 0,
    small: Small = False,
) -> None:
    """Write training cells and questions, for a tool from elsewhere to answer; see --predictions of `run`."""
    from rich.console import Console

    from sccausal import benchmark

    sets = _data(None if data is None else [data], keys)
    for path in benchmark.export_cases(
        task, out, data=None if sets is None else sets[0], folder=folder, seed=seed, small=small
    ):
        Console().print(str(path))


def _data(names: list[str] | None, keys: str | None) -> list[Any] | None:
    """Names of data sets, and files of the user as data sets."""
    from sccausal._errors import SetupError
    from sccausal.benchmark._folder import file_dataset, parse_keys

    if not names:
        return None
    out: list[Any] = []
    for name in names:
        if not name.endswith(".h5ad"):
            out.append(name)
        elif keys is None:
            raise SetupError(f"{name} needs --keys, which name its columns, e.g. condition_key=condition,control=ctrl.")
        else:
            out.append(file_dataset(Path(name), parse_keys(keys)))
    return out


def _predictions(pairs: list[str] | None) -> dict[str, AnnData]:
    from sccausal._errors import SetupError
    from sccausal.benchmark._folder import read_h5ad

    out: dict[str, AnnData] = {}
    for pair in pairs or []:
        name, _, file = pair.rpartition("=")
        cells = read_h5ad(Path(file))
        name = name or str(cells.uns.get("sccausal", {}).get("method", Path(file).stem))
        if name in out:
            raise SetupError(f"Two predictions are called {name!r}; name them by NAME=FILE.")
        out[name] = cells
    return out


def _report(out: Path, console: Any) -> None:
    from sccausal import benchmark

    paths = benchmark.write_report(out)
    console.print(f"Report: {paths['html']}, {paths['markdown']}")
