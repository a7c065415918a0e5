"""PNG files that weigh little: figures have few colours, so a palette of 256 holds them."""

from __future__ import annotations

from pathlib import Path

from PIL import Image


def write_small(image: Image.Image, path: Path, width: int | None = None) -> int:
    """Write ``image``, at most ``width`` pixels wide, on white ground; returns the size in bytes."""
    rgba = image.convert("RGBA")
    ground = Image.new("RGBA", rgba.size, "white")
    flat = Image.alpha_composite(ground, rgba).convert("RGB")
    if width is not None and flat.width > width:
        flat = flat.resize((width, round(flat.height * width / flat.width)), Image.Resampling.LANCZOS)
    path.parent.mkdir(parents=True, exist_ok=True)
    flat.quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)
    return path.stat().st_size
