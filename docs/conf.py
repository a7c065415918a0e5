"""Configuration of the documentation."""

from __future__ import annotations

import os
import sys
import warnings
from datetime import date
from importlib.metadata import version as installed_version
from pathlib import Path

import anndata  # noqa: F401  (before the package, which registers its accessor when anndata is there)

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

# what sphinx-autodoc-typehints calls in Sphinx is not ours to change
warnings.filterwarnings("ignore", module="sphinx_autodoc_typehints")

project = "sccausal"
author = "sccausal developers"
copyright = f"{date.today().year}, {author}"
version = release = installed_version("sccausal")

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.intersphinx",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_autodoc_typehints",
    "sphinxcontrib.bibtex",
    "notebook_pages",
    "prose_sections",
]

# .rst stands first: autosummary writes its pages in the first format, and in Markdown they would stay text
source_suffix = {".rst": "restructuredtext", ".md": "myst-nb", ".ipynb": "myst-nb"}
exclude_patterns = ["_build", "Thumbs.db", "**.ipynb_checkpoints", "jupyter_execute", "notebooks/_cards.md"]
templates_path = ["_templates"]

# notebooks carry their outputs; `make notebooks` runs them
nb_execution_mode = "off"
myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath", "html_image"]
myst_heading_anchors = 3

autosummary_generate = True
autosummary_ignore_module_all = False
autodoc_member_order = "bysource"
autodoc_class_signature = "mixed"
autodoc_mock_imports: list[str] = []
napoleon_google_docstring = False
napoleon_numpy_docstring = True
napoleon_use_rtype = True
napoleon_use_param = True
napoleon_preprocess_types = True

typehints_defaults = "braces"
typehints_document_rtype_none = False
always_use_bars_union = True

bibtex_bibfiles = ["references.bib"]
bibtex_reference_style = "author_year"
bibtex_default_style = "alpha"

# inventories of other projects are fetched where there is a network, so that a build without one stays free of warnings
if os.environ.get("READTHEDOCS") or os.environ.get("CI"):
    intersphinx_mapping = {
        "anndata": ("https://anndata.readthedocs.io/en/stable/", None),
        "networkx": ("https://networkx.org/documentation/stable/", None),
        "numpy": ("https://numpy.org/doc/stable/", None),
        "pandas": ("https://pandas.pydata.org/docs/", None),
        "python": ("https://docs.python.org/3", None),
        "scanpy": ("https://scanpy.readthedocs.io/en/stable/", None),
        "scipy": ("https://docs.scipy.org/doc/scipy/", None),
        "scvi-tools": ("https://docs.scvi-tools.org/en/stable/", None),
        "torch": ("https://docs.pytorch.org/docs/stable/", None),
    }

# types that exist for the type checker only cannot be resolved when the page is made
suppress_warnings = [
    "sphinx_autodoc_typehints.forward_reference",
    "sphinx_autodoc_typehints.guarded_import",
    "sphinx_autodoc_typehints.local_function",
]

html_theme = "furo"
html_title = f"sccausal {release}"
html_static_path = ["_static"]
html_css_files = ["pages.css"]
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#0072B2", "color-brand-content": "#0072B2"},
    "dark_css_variables": {"color-brand-primary": "#56B4E9", "color-brand-content": "#56B4E9"},
}
