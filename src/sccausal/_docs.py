"""Descriptions of parameters that many functions share, kept in one place."""

from __future__ import annotations

from docrep import DocstringProcessor

# each entry is the whole item as it stands below "Parameters"
docs = DocstringProcessor(
    adata="""\
adata
    Annotated data (cells x genes). Must not be a view.""",
    setup_adata="""\
adata
    Annotated data (cells x genes), in memory or backed, not a view. scvi-tools keeps its notes in
    ``obs["_scvi_*"]``, ``obsm["_scvi_*"]`` and ``uns["_scvi_*"]`` of this object; nothing else is written, and
    nothing at all if an error is raised.""",
    layer="""\
layer
    Layer with the expression values; ``None`` takes ``adata.X``.""",
    batch_key="""\
batch_key
    Column of ``adata.obs`` with the technical batch.""",
    labels_key="""\
labels_key
    Column of ``adata.obs`` with cell types or other strata.""",
    condition_key="""\
condition_key
    Column of ``adata.obs`` with one condition per cell, such as a stimulus.""",
    intervention_key="""\
intervention_key
    Column of ``adata.obs`` with labels (``"A"``, ``"A+B"`` or the control), or key of ``adata.obsm`` with a frame
    cells x targets that holds doses (a row of zeros is a control cell).""",
    control="""\
control
    Label of the cells without intervention.""",
    sep="""\
sep
    String between the targets of a combination; ``None`` if a label is always one target.""",
    time_key="""\
time_key
    Column of ``adata.obs`` with the time of measurement, a number.""",
    concept_keys="""\
concept_keys
    Columns of ``adata.obs`` with named concepts.""",
    query_adata="""\
adata
    Cells to work on, with the genes and columns of the training data (genes in any order, more genes allowed). It is
    checked and left as it is. Default: the cells the model was set up with.""",
    plot="""\
title
    Title of the plot.
ax
    Axes to draw on.
show, save, return_fig
    As in scanpy: show the figure, write it to a file, return it.""",
    plot_returns="""\
The axes, the figure if ``return_fig``, or ``None`` if shown.""",
    indices="""\
indices
    Positions of the cells to use; default all.""",
    batch_size="""\
batch_size
    Cells per mini-batch; default ``scvi.settings.batch_size``. Results do not depend on it.""",
    interventions="""\
interventions
    Interventions to predict: labels (``"A"``, ``"A+B"``), tuples of targets (``("A", "B")``) or doses
    (``{"A": 0.5}``). The control is allowed. Targets must be known; combinations may be new.""",
    condition="""\
condition
    Condition the cells are predicted in; default: their own. Only for models with a condition beside the
    intervention.""",
    times="""\
times
    Times to predict, in the unit of the training data; default: the cells' own. Only for models of time.""",
    n_samples="""\
n_samples
    Draws per cell. With 1 the model gives its expectation if it has one.""",
    seed="""\
seed
    Seed of the draws. The global random state is neither used nor changed.""",
    accelerator="""\
accelerator
    Hardware, as in Lightning: ``"auto"``, ``"cpu"``, ``"gpu"``, ``"mps"``.""",
    device="""\
device
    Device index, or ``"auto"``.""",
)
