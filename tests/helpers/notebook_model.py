"""The model that the notebook `your_own_model` writes, so that the contract runs over it too."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType

NOTEBOOK = Path(__file__).parents[2] / "notebooks" / "your_own_model.ipynb"


def load() -> ModuleType:
    """Module with the imports and the classes of the notebook, and nothing else of it."""
    if "notebook_model_cells" in sys.modules:
        return sys.modules["notebook_model_cells"]
    cells = ["".join(c["source"]) for c in json.loads(NOTEBOOK.read_text())["cells"] if c["cell_type"] == "code"]
    imports = [line for line in cells[0].splitlines() if line.startswith(("import ", "from "))]
    module = ModuleType("notebook_model_cells")
    # classes look their names up in the module they say they come from
    sys.modules[module.__name__] = module
    for source in ["\n".join(imports), *(cell for cell in cells if "\nclass " in f"\n{cell}")]:
        exec(compile(source, str(NOTEBOOK), "exec"), module.__dict__)
    return module
