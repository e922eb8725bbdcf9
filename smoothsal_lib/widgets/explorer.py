"""What an explorer is to a notebook: HTML with its data and a small script, which needs no Python and no network."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SIZE_LIMIT = 600_000  # bytes of one explorer; a notebook of the book has 1 MB in all
HERE = Path(__file__).parent
PLACEHOLDER = "[Interactive on the page and in a notebook]"  # what stands in an explorer's place as text


@dataclass(frozen=True)
class Explorer:
    """Something to move in a notebook or on a page. The last line of a cell shows it; :meth:`save` makes a page of it.

    It is HTML that carries its data and its script. So it works wherever the outputs of a notebook are shown as HTML
    and their scripts run: the book's pages, Jupyter, VS Code and Colab, with or without a kernel, and without a
    network. Where scripts do not run, on GitHub and in print, a line of text stands in its place.

    Attributes:
        kind: of explorer, the name of its script.
        label: what can be moved and seen, for those who cannot see it and where it is not shown.
        data: what its script reads, as JSON has it.
    """

    kind: str
    label: str
    data: Mapping[str, Any] = field(repr=False)

    @property
    def html(self) -> str:
        """The element that shows the explorer; the same for the same data."""
        stored = json.dumps(self.data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        stored = stored.replace("<", "\\u003c")  # so that no text ends the script
        name = hashlib.sha256((self.kind + self.label + stored).encode()).hexdigest()[:16]
        script = "\n".join((HERE / f"{part}.js").read_text("utf-8") for part in ("explorer", self.kind))
        style = (HERE / "explorer.css").read_text("utf-8")
        return "\n".join(
            [
                f'<div class="sal tex2jax_ignore" data-sal="{name}" role="group" aria-label="{escape(self.label)}">',
                f"<style>{style}</style>",
                f'<p class="sal-note">{escape(self.label)} It needs a page or a notebook whose scripts run.</p>',
                f'<script type="application/json">{stored}</script>',
                f"<script>(() => {{\n{script}\n{START.replace('NAME', name)}\n}})();</script>",
                "</div>",
            ]
        )

    @property
    def fits(self) -> bool:
        """Whether it has at most ``SIZE_LIMIT`` bytes."""
        return len(self.html.encode()) <= SIZE_LIMIT

    def save(self, path: str | Path) -> None:
        """Write a page of its own, for a lecture or a mail.

        Args:
            path: of an HTML file.
        """
        page = f'<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n<title>{escape(self.label)}</title>\n'
        page += f'<meta name="viewport" content="width=device-width">\n<body>\n{self.html}\n</body>\n</html>\n'
        Path(path).write_text(page, "utf-8")

    def _repr_html_(self) -> str:
        return self.html

    def __repr__(self) -> str:
        return f"{PLACEHOLDER} {self.label}"


# The same explorer may stand on a page twice, and an output may be shown again: every place is built once.
START = """
for (const root of document.querySelectorAll('[data-sal="NAME"]:not([data-ready])')) {
  root.dataset.ready = "";
  const data = JSON.parse(root.querySelector('script[type="application/json"]').textContent);
  root.querySelector("p").remove();
  const say = (error) => root.append(make("p", { role: "alert" }, `This explorer cannot be shown: ${error}`));
  build(root, data).catch(say);
}
"""


def packed(values: NDArray[np.uint8]) -> str:
    """Bytes as the scripts' ``unpacked`` reads them."""
    return base64.b64encode(zlib.compress(values.tobytes(), 9)).decode()


def address(image: NDArray[np.uint8], quality: int | None = None) -> str:
    """A picture as the address of an ``<img>``: PNG, or JPEG of some quality.

    Args:
        image: (H, W) or (H, W, 3) uint8.
        quality: of a JPEG, from 1 to 95; ``None`` loses nothing.
    """
    file = io.BytesIO()
    if quality is None:
        Image.fromarray(image).save(file, "png", optimize=True)
    else:
        Image.fromarray(image).save(file, "jpeg", quality=quality, optimize=True)
    kind = "png" if quality is None else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"
