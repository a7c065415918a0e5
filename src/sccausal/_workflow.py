"""From a file to a trained model with its tables and figures: what `sccausal fit`, `predict` and `grn` do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sccausal._errors import FileFormatError, InputDataError, SetupError, unknown_name
from sccausal._fit_model import check_model, train_model
from sccausal._steps import Steps, finished, open_folder, quiet_libraries, write_json

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

    from sccausal.data import Split


@dataclass(frozen=True)
class FitSettings:
    """What `sccausal fit` was asked for."""

    model: str = "scconcrl"
    condition_key: str | None = None
    intervention_key: str | None = None
    control: str | None = None
    labels_key: str | None = None
    batch_key: str | None = None
    layer: str | None = None
    time_key: str | None = None
    concepts: tuple[str, ...] = ()
    edges: tuple[str, ...] = ()
    activities: str | None = None
    sep: str = "+"
    hold_out: str = "auto"
    n_genes: int = 2000
    regulators: tuple[str, ...] | None = None
    likelihood: str = "gaussian"
    epochs: int | None = None
    model_kwargs: dict[str, Any] = field(default_factory=dict)
    seed: int = 0

    def __post_init__(self) -> None:
        if (self.condition_key is None) == (self.intervention_key is None):
            raise SetupError("Name what is to be predicted by exactly one of --condition-key and --intervention-key.")
        if self.likelihood not in ("gaussian", "nb", "zinb"):
            raise unknown_name("likelihood", self.likelihood, ("gaussian", "nb", "zinb"))
        if self.n_genes < 0 or (self.epochs is not None and self.epochs < 1):
            raise SetupError("--genes cannot be negative and --epochs must be at least 1.")
        check_model(self)

    @property
    def target(self) -> str:
        """Column of the perturbed variable."""
        return str(self.condition_key or self.intervention_key)

    @property
    def perturbed(self) -> dict[str, str | None]:
        """The two keys, one of them ``None``."""
        return {"condition_key": self.condition_key, "intervention_key": self.intervention_key}


def read_cells(path: Path) -> AnnData:
    """Read an h5ad file, or say what is wrong with it."""
    import anndata as ad

    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    try:
        return ad.read_h5ad(path)
    except Exception as error:  # a foreign file makes the reader raise errors of many kinds
        raise FileFormatError(f"{path} cannot be read as h5ad: {error}") from error


def run_fit(
    file: Path, out: Path, settings: FitSettings, *, overwrite: bool = False, steps: Steps | None = None
) -> None:
    """Fit a model on a file and write everything into ``out``."""
    steps = steps or Steps()
    with quiet_libraries():
        with steps(f"Read {file}"):
            adata = prepare(read_cells(file), settings)
            steps.say(f"{adata.n_obs} cells x {adata.n_vars} genes")
        run = {"command": "fit", "file": str(file.resolve()), "bytes": file.stat().st_size, **asdict(settings)}
        known = open_folder(out, run, overwrite)
        if known and finished(out, steps) is not None:
            return
        run_pipeline(adata, out, settings, steps, resume=known)


def prepare(adata: AnnData, settings: FitSettings) -> AnnData:
    """Cells with log1p(1e4) values in ``X`` and, for count likelihoods, counts in ``layers["counts"]``.

    Raises
    ------
    sccausal._errors.SetupError
        A column or the control is missing.
    sccausal._errors.InputDataError
        Values cannot be used, or counts are needed and not there.
    """
    from sccausal.data import check_matrix, check_obs_column
    from sccausal.metrics import log1p_norm

    for name in ("labels_key", "batch_key", "time_key"):
        if getattr(settings, name) is not None:
            check_obs_column(adata, getattr(settings, name), name)
    for concept in settings.concepts:
        check_obs_column(adata, concept, "concept")
    column = check_obs_column(adata, settings.target, "condition_key or intervention_key")
    levels = sorted(column.astype(str).unique())
    if settings.control is None:
        raise SetupError(
            f"Name the control by --control; adata.obs[{settings.target!r}] holds {', '.join(levels[:8])}."
        )
    if settings.control not in levels:
        raise unknown_name("control", settings.control, levels, f"adata.obs[{settings.target!r}]")
    check_matrix(adata, settings.layer, False)
    source = adata.X if settings.layer is None else adata.layers[settings.layer]
    if _is_counts(source):
        counts = source.copy()
        adata = log1p_norm(adata, layer=settings.layer)
        adata.layers["counts"] = counts
    elif settings.likelihood != "gaussian":
        raise InputDataError(
            f"--likelihood {settings.likelihood} needs counts, but "
            f"{'X' if settings.layer is None else f'layer {settings.layer!r}'} holds other values; see --layer."
        )
    elif settings.layer is not None:
        adata = adata.copy()
        adata.X = source.copy()
    return adata


def run_pipeline(
    adata: AnnData,
    out: Path,
    settings: FitSettings,
    steps: Steps,
    *,
    resume: bool = False,
    truth: pd.DataFrame | None = None,
) -> dict[str, Any]:
    """Split, select genes, train, judge, read the network, draw; return the summary that is also written."""
    from sccausal import _report as report

    with steps("Split and select genes"):
        split, adata = split_and_select(adata, settings, steps)
        if split is not None:
            split.save(out / "split.json")
        train = adata if split is None else adata[split.train].copy()
    with steps("Train"):
        model = train_model(train, out, settings, steps, resume=resume)
        report.history_figure(model, out)
    summary: dict[str, Any] = {"cells": adata.n_obs, "training_cells": train.n_obs, "genes": adata.n_vars}
    if split is not None:
        with steps("Predict held-out cells, compare with simple rules"):
            summary["held_out"] = split.params.get("test_units", [])
            summary["comparison"] = report.comparison(model, adata[split.test].copy(), adata, settings, out, steps)
    with steps("Read the gene network and key genes"):
        summary["edges"] = report.network(model, out, steps, truth=truth, adata=train)
        report.key_gene_table(model, out, steps)
        report.identifiability(model, out, steps)
    with steps("Embed the cells"):
        report.embedding(model, adata, split, settings, out, steps)
    summary["seconds"] = steps.seconds
    write_json(out / "summary.json", summary)
    steps.console.print(f"[bold]Results are in {out}[/]: " + ", ".join(sorted(p.name for p in out.iterdir())))
    return summary


def split_and_select(adata: AnnData, settings: FitSettings, steps: Steps) -> tuple[Split | None, AnnData]:
    """Held-out cells, and the genes chosen without them."""
    from sccausal import pp

    split = choose_split(adata, settings)
    if split is None:
        steps.say("nothing is held out: no comparison with simple rules is possible")
    else:
        held = ", ".join(map(str, split.params.get("test_units", []))) or settings.hold_out
        steps.say(f"held out: {held} ({len(split.test)} cells)")
    if settings.n_genes and settings.n_genes < adata.n_vars:
        named = set(adata.obs[settings.target].astype(str).str.split(settings.sep, regex=False).explode())
        chosen = pp.select_genes(
            adata,
            settings.n_genes,
            condition_key=settings.target,
            control=settings.control,
            labels_key=settings.labels_key,
            keep=[g for g in adata.var_names if g in named],  # targets of interventions
            regulators=settings.regulators,
            train=None if split is None else split.train,
            copy=True,
        )
        assert chosen is not None  # copy=True gives one
        adata = chosen[:, chosen.var["selected"]].copy()
        steps.say(f"{adata.n_vars} genes: variable, responding, or regulators; chosen on training cells")
    return split, adata


def choose_split(adata: AnnData, settings: FitSettings) -> Split | None:
    """What ``--hold-out`` means for these cells.

    ``auto`` holds out the cell type whose number of treated cells is the median; without cell types, a fifth of the
    combinations whose parts are seen; nothing if there is neither. Without combinations, a named intervention is held
    out as a whole.
    """
    from sccausal import pp

    keys: dict[str, Any] = {
        **settings.perturbed,
        "control": settings.control,
        "sep": settings.sep,
        "seed": settings.seed,
    }
    if settings.hold_out == "none":
        return None
    combinations = settings.intervention_key is not None and bool(
        adata.obs[settings.target].astype(str).str.contains(settings.sep, regex=False).any()
    )
    if settings.condition_key is not None and settings.labels_key is not None:
        held = settings.hold_out
        if held == "auto":
            treated = adata.obs[adata.obs[settings.target].astype(str) != settings.control]
            counts = treated[settings.labels_key].astype(str).value_counts().sort_index().sort_values(kind="stable")
            if len(counts) < 3:
                return None
            held = str(counts.index[len(counts) // 2])
        return pp.split(adata, "condition_x_type", labels_key=settings.labels_key, hold_out=held, **keys)
    if combinations:
        held_doubles = None if settings.hold_out == "auto" else settings.hold_out
        return pp.split(adata, "unseen_doubles", hold_out=held_doubles, **keys)
    if settings.hold_out == "auto":
        return None
    if settings.intervention_key is None:
        raise SetupError("--hold-out needs cell types (--condition-key with --labels-key) or --intervention-key.")
    return pp.split(adata, "leave_intervention_out", hold_out=settings.hold_out, **keys)


def run_predict(
    folder: Path,
    out: Path,
    interventions: Sequence[str] | None,
    *,
    cells: Path | None = None,
    n_samples: int = 1,
    seed: int = 0,
    steps: Steps | None = None,
) -> None:
    """Write predicted cells."""
    steps = steps or Steps()
    if out.suffix != ".h5ad":
        raise FileFormatError(f"Predictions are written as .h5ad; got {out.name!r}.")
    with quiet_libraries(), steps("Predict"):
        model = open_model(folder)
        start = None
        if cells is not None:
            start = read_cells(cells)
            if _is_counts(start.X) and model.prediction_units != "counts":
                from sccausal.metrics import log1p_norm

                start = log1p_norm(start)
                steps.say("the cells hold counts; brought to log1p of 1e4 per cell")
        wished = list(interventions) if interventions else None
        predicted = model.perturbation.predict(start, wished, n_samples=n_samples, seed=seed)
        out.parent.mkdir(parents=True, exist_ok=True)
        predicted.write_h5ad(out)
        names = list(predicted.obs["intervention"].cat.categories)
        steps.say(f"{predicted.n_obs} cells under {', '.join(names[:8])}{', ...' if len(names) > 8 else ''} -> {out}")


def run_grn(
    folder: Path, out: Path, *, top: int | None = None, figure: Path | None = None, steps: Steps | None = None
) -> None:
    """Write the gene network of a saved model."""
    steps = steps or Steps()
    if out.suffix not in (".csv", ".parquet", ".graphml"):
        raise FileFormatError(f"A network is written as .csv, .parquet or .graphml; got {out.name!r}.")
    with quiet_libraries(), steps("Read the gene network"):
        network = open_model(folder).grn.network(top=top)
        out.parent.mkdir(parents=True, exist_ok=True)
        network.write(out)
        steps.say(f"{len(network)} edges -> {out}")
        if figure is not None:
            from sccausal import pl

            pl.grn(network, show=False, save=figure)


def open_model(folder: Path) -> Any:
    """Model in ``folder``, or in ``folder/model`` where `sccausal fit` puts it."""
    from sccausal import models

    inner = folder / "model"
    return models.load_model(inner if (inner / "model.json").is_file() else folder)


def _is_counts(X: Any) -> bool:
    """Whether a matrix holds whole numbers only, none of them negative."""
    values = X.data if hasattr(X, "data") and not isinstance(X, np.ndarray) else np.asarray(X).ravel()
    sample = values[:: max(1, len(values) // 1_000_000)]
    return bool(sample.size and sample.min() >= 0 and np.equal(sample, np.rint(sample)).all())
