"""Command line: ``sccausal demo | fit | predict | grn | benchmark``."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from sccausal._cli_benchmark import app as benchmark_app

# Heavy imports stand in the commands: `sccausal --help` answers at once.

app = typer.Typer(
    name="sccausal",
    help="Causal models of single-cell data: train, predict, read the gene network, compare with simple rules.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Command = TypeVar("Command", bound=Callable[..., None])


def _clean_errors(command: Command) -> Command:
    """Print what the user can mend as one message and leave with code 2; anything else is a bug and keeps its trace."""

    @functools.wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> None:
        from rich.console import Console
        from rich.markup import escape

        from sccausal._errors import SCCausalError

        try:
            command(*args, **kwargs)
        except (SCCausalError, FileNotFoundError, FileExistsError, PermissionError, IsADirectoryError) as error:
            message = escape(" ".join(str(error).split()))
            Console(stderr=True, soft_wrap=True).print(f"[bold red]error:[/] {message}", highlight=False)
            raise typer.Exit(2) from None
        except KeyboardInterrupt:
            Console(stderr=True).print("interrupted; call again with the same arguments to continue")
            raise typer.Exit(130) from None

    return wrapped  # type: ignore[return-value]


for _command in benchmark_app.registered_commands:
    if _command.callback is not None:
        _command.callback = _clean_errors(_command.callback)
app.add_typer(benchmark_app)

OutDir = Annotated[Path, typer.Option("--out", "-o", help="Folder for all results; made if it is not there.")]
Seed = Annotated[int, typer.Option(help="Seed of every draw.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Start again instead of continuing in the folder.")]


def _version(wanted: bool) -> None:
    if wanted:
        from sccausal import __version__

        typer.echo(f"sccausal {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    pass


@app.command()
@_clean_errors
def demo(
    out: OutDir = Path("demo_output"),
    seed: Seed = 0,
    fast: Annotated[bool, typer.Option("--fast", help="Few cells and epochs: a check, not a result.")] = False,
    overwrite: Overwrite = False,
) -> None:
    """Run everything on simulated cells with a known network: a few minutes on two cores."""
    # matrices this small gain nothing from threads, and threads that wait for a busy core cost a factor of seven; the
    # variable counts because no numerical library has been imported yet
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    from sccausal._demo import run_demo

    run_demo(out, seed=seed, fast=fast, overwrite=overwrite)


@app.command()
@_clean_errors
def fit(
    file: Annotated[Path, typer.Argument(help="Cells, .h5ad with counts or log1p values.", show_default=False)],
    out: OutDir,
    model: Annotated[str, typer.Option(help="scconcrl, gcrlvae, discrepancyvae, lcd, causcell, citevae.")] = "scconcrl",
    condition_key: Annotated[str | None, typer.Option(help="obs column of the condition to predict.")] = None,
    intervention_key: Annotated[
        str | None, typer.Option(help='obs column of interventions ("A", "A+B", control), in place of a condition.')
    ] = None,
    control: Annotated[str | None, typer.Option(help="Label of the untreated cells in that column.")] = None,
    labels_key: Annotated[str | None, typer.Option(help="obs column of cell types.")] = None,
    batch_key: Annotated[str | None, typer.Option(help="obs column of batches.")] = None,
    time_key: Annotated[str | None, typer.Option(help="obs column of times (causcell, citevae).")] = None,
    concept: Annotated[
        list[str] | None, typer.Option(help="obs column of a concept (causcell); may be repeated.")
    ] = None,
    edge: Annotated[
        list[str] | None, typer.Option(help="PARENT->CHILD in the graph of concepts (causcell); may be repeated.")
    ] = None,
    activities: Annotated[Path | None, typer.Option(help="Sets of genes, .gmt (gcrlvae).")] = None,
    layer: Annotated[str | None, typer.Option(help="Layer with the expression; default X.")] = None,
    sep: Annotated[str, typer.Option(help="What stands between the targets of a combination.")] = "+",
    hold_out: Annotated[
        str,
        typer.Option(
            help="Kept out of training to compare the model with simple rules: a cell type (with a condition), a "
            "double or an intervention, 'auto' or 'none' (train on every cell)."
        ),
    ] = "auto",
    genes: Annotated[int, typer.Option(help="Variable genes to keep beside those that respond; 0 keeps all.")] = 2000,
    regulators: Annotated[
        Path | None, typer.Option(help="Text file of regulators, one gene a line: only these have targets.")
    ] = None,
    likelihood: Annotated[str, typer.Option(help="gaussian (on log1p), nb or zinb (on counts).")] = "gaussian",
    epochs: Annotated[int | None, typer.Option(help="Passes through the cells; default by their number.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Argument of the model as NAME=VALUE; may be repeated.")
    ] = None,
    seed: Seed = 0,
    overwrite: Overwrite = False,
) -> None:
    """Train a model on a file, judge it on held-out cells, and write model, tables and figures."""
    from sccausal._workflow import FitSettings, run_fit

    settings = FitSettings(
        model=model,
        condition_key=condition_key,
        intervention_key=intervention_key,
        control=control,
        labels_key=labels_key,
        batch_key=batch_key,
        time_key=time_key,
        concepts=tuple(concept or ()),
        edges=tuple(edge or ()),
        activities=None if activities is None else str(activities),
        layer=layer,
        sep=sep,
        hold_out=hold_out,
        n_genes=genes,
        regulators=_read_names(regulators),
        likelihood=likelihood,
        epochs=epochs,
        model_kwargs=_parse_arguments(set_ or []),
        seed=seed,
    )
    run_fit(file, out, settings, overwrite=overwrite)


@app.command()
@_clean_errors
def predict(
    folder: Annotated[Path, typer.Argument(help="Folder of `sccausal fit`, or of a saved model.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", "-o", help="File to write, .h5ad.")],
    interventions: Annotated[
        list[str] | None,
        typer.Option("--interventions", "-i", help='"A", "A+B" or a condition; may be repeated. Default: all known.'),
    ] = None,
    cells: Annotated[
        Path | None, typer.Option(help="Control cells to start from, .h5ad; default: those of the training.")
    ] = None,
    samples: Annotated[int, typer.Option(help="Draws per cell.")] = 1,
    seed: Seed = 0,
) -> None:
    """Predict cells under interventions with a trained model."""
    from sccausal._workflow import run_predict

    run_predict(folder, out, interventions, cells=cells, n_samples=samples, seed=seed)


@app.command()
@_clean_errors
def grn(
    folder: Annotated[Path, typer.Argument(help="Folder of `sccausal fit`, or of a saved model.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", "-o", help="File to write: .csv, .parquet or .graphml.")],
    top: Annotated[int | None, typer.Option(help="Keep the strongest edges only.")] = None,
    figure: Annotated[Path | None, typer.Option(help="Also draw the 50 strongest edges into this file.")] = None,
) -> None:
    """Write the gene network of a trained model."""
    from sccausal._workflow import run_grn

    run_grn(folder, out, top=top, figure=figure)


def _read_names(path: Path | None) -> tuple[str, ...] | None:
    if path is None:
        return None
    return tuple(line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip())


def _parse_arguments(pairs: list[str]) -> dict[str, Any]:
    """``["n_domain_latent=8"]`` as keyword arguments; numbers, booleans and None are read as such."""
    import ast

    from sccausal._errors import SetupError

    out: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or not name.isidentifier():
            raise SetupError(f"--set needs NAME=VALUE, got {pair!r}.")
        try:
            out[name] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            out[name] = text
    return out
