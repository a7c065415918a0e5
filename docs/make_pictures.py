"""Pictures of the start page and of the README: figures of `sccausal demo`, made small.

python docs/make_pictures.py              # runs the demo, minutes
python docs/make_pictures.py demo_output  # takes the figures of a demo that was run
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from PIL import Image

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "_ext"))

from small_png import write_small  # noqa: E402  (the folder is known only now)

# file of the demo -> largest width in pixels
FIGURES = {"comparison": 1100, "network": 700, "umap": 1100}


def main(folder: Path | None) -> None:
    """Run the demo if no folder is given, and copy its figures."""
    with tempfile.TemporaryDirectory() as made:
        if folder is None:
            from sccausal._demo import run_demo

            folder = Path(made) / "demo"
            run_demo(folder)
        for name, width in FIGURES.items():
            with Image.open(folder / f"{name}.png") as image:
                size = write_small(image, HERE / "_static" / "demo" / f"{name}.png", width)
            print(f"{name}: {size / 1024:.0f} kB")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else None)
