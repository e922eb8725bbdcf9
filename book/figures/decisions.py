"""Draw the decision chart of the chapter "Your own network": python book/figures/decisions.py"""

from __future__ import annotations

from pathlib import Path
from xml.sax.saxutils import escape

Rung = tuple[str, str, str]  # question, what to do when the answer is yes, the chapters that it rests on

LADDERS: dict[str, tuple[list[Rung], tuple[str, str]]] = {
    "1  Which fix?": (
        [
            ("Is there no strided convolution above the layer?", "fix=None", "chapters 3 and 5"),
            ("Will only a score read the map, and no person?", "fix=None", "chapter 8"),
            ("Can you spend images and time on a fit?", "fix=surrogate", "chapters 4 and 8"),
        ],
        ('fix="backward"', "chapters 5 and 7"),
    ),
    "2  Which layer?": (
        [
            ("Do you ask which pixels decide?", 'layers="input"', "chapter 8"),
            ("Do you ask what belongs to the object?", "the first stage", "chapter 9"),
            ("Do you ask roughly where, or whether it is this class?", "the last layers", "chapter 9"),
        ],
        ('layers="all", and measure', "chapters 7 to 9"),
    ),
    "3  Which method?": (
        [
            ("Should it tell what speaks for and what against?", 'method="deeplift"', "chapters 2, 8 and 9"),
            ("Do you look at the last stage only?", 'method="grad_cam"', "chapter 9"),
            ("Is it enough how much a place matters?", 'method="normgrad"', "chapter 11"),
        ],
        ('method="gradient", sampling="smoothgrad"', "chapter 10"),
    ),
}

# Lengths in pixels.
WIDTH, MARGIN = 720, 12
QUESTION, LEAF = 420, 208
HEIGHT, GAP, HEADING = 42, 22, 34
COLOURS = (("#005f8f", "#d9edf7"), ("#00684a", "#ddf3ea"), ("#a33f00", "#fbe6d8"))


def text(x: float, y: float, words: str, **style: str) -> str:
    """A line of text, centred at x."""
    attributes = "".join(f' {name.replace("_", "-")}="{value}"' for name, value in style.items())
    return f'<text x="{x:g}" y="{y:g}" text-anchor="middle"{attributes}>{escape(words)}</text>'


def box(x: float, y: float, width: float, stroke: str, fill: str) -> str:
    """A box of the height that all have."""
    shape = f'x="{x:g}" y="{y:g}" width="{width:g}" height="{HEIGHT}" rx="6"'
    return f'<rect {shape} stroke="{stroke}" fill="{fill}" stroke-width="1.6"/>'


def leaf(x: float, y: float, width: float, what: str, chapters: str, colours: tuple[str, str]) -> list[str]:
    """What to do, and the chapters it rests on."""
    middle = x + width / 2
    return [
        box(x, y, width, *colours),
        text(middle, y + 18, what, font_family="DejaVu Sans Mono, Menlo, monospace", font_weight="bold"),
        text(middle, y + 34, chapters, font_size="11.5", fill="#444444"),
    ]


def arrow(path: str) -> str:
    """A line with a head."""
    return f'<path d="{path}" stroke="#444444" stroke-width="1.5" fill="none" marker-end="url(#head)"/>'


def chart() -> str:
    """The picture as SVG."""
    parts: list[str] = []
    right, middle, y = WIDTH - MARGIN - LEAF, MARGIN + QUESTION / 2, 0.0
    for (title, (rungs, last)), colours in zip(LADDERS.items(), COLOURS, strict=True):
        y += HEADING
        parts.append(f'<text x="{MARGIN}" y="{y - 11:g}" font-size="15" font-weight="bold">{escape(title)}</text>')
        for question, what, chapters in rungs:
            centre = y + HEIGHT / 2
            parts += [box(MARGIN, y, QUESTION, "#777777", "#f7f7f7"), text(middle, centre + 5, question)]
            parts += leaf(right, y, LEAF, what, chapters, colours)
            parts.append(arrow(f"M{MARGIN + QUESTION} {centre:g} H{right - 2}"))
            parts.append(text((MARGIN + QUESTION + right) / 2 - 4, centre - 6, "yes", font_size="12"))
            y += HEIGHT + GAP
            parts.append(arrow(f"M{middle:g} {y - GAP:g} V{y - 2:g}"))
            parts.append(text(middle + 16, y - GAP / 2 + 4, "no", font_size="12"))
        parts += leaf(MARGIN, y, QUESTION, *last, colours)
        y += HEIGHT + 8
    height = round(y + MARGIN)
    body = "\n".join(parts)
    font = 'font-family="DejaVu Sans, Verdana, sans-serif" font-size="13"'
    size = f'viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}"'
    return f"""<svg xmlns="http://www.w3.org/2000/svg" {size} {font} fill="#222222">
<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>
<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">\
<path d="M0 0 L8 4 L0 8 Z" fill="#444444"/></marker></defs>
{body}
</svg>
"""


def main() -> None:
    """Write ``decisions.svg`` beside this file."""
    Path(__file__).with_name("decisions.svg").write_text(chart(), encoding="utf-8")


if __name__ == "__main__":
    main()
