"""The whole book as one PDF, for print and for reading without a network.

    python book/pdf.py        (this is `make pdf`)

The stored notebooks are copied and made ready for paper: hints, solutions and the answers to the quizzes come together
at the end of their chapter, explorers give way to a box that says where they can be moved, and links to what is on the
site alone become addresses. Sphinx makes LaTeX of the copy, XeLaTeX makes pages of it; ``book/latex`` says how they
look. Nothing in ``book/`` is changed.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import build
import nbformat
import yaml

from smoothsal_lib.exercises.marking import UNANSWERED
from smoothsal_lib.widgets import quiz
from smoothsal_lib.widgets.explorer import PLACEHOLDER
from smoothsal_lib.widgets.quiz import Quiz

NAME = "smooth-deep-saliency"
STYLE = build.BOOK / "latex"
# Pages about the site: when it was built, and the library's reference, which one searches and does not read.
SITE_ONLY = re.compile(r"status|api(/.*)?")
BIBLIOGRAPHY = "references"
# An output with columns that has lines longer than this gets a smaller size, which book.tex gives the tag.
WIDE = {"wide": 94, "wider": 104}
# What a Debian or Ubuntu machine has to install, and how to see whether it has.
PROGRAMS = ("latexmk", "xelatex", "rsvg-convert")
FONTS = ("texgyrepagella-regular.otf", "texgyrepagella-math.otf", "texgyreheros-regular.otf", "titlesec.sty")
PACKAGES = (
    "latexmk texlive-xetex texlive-latex-extra texlive-fonts-recommended fonts-texgyre fonts-texgyre-math "
    "fonts-dejavu librsvg2-bin"
)

EXERCISE = re.compile(
    r"^(?P<fence>:{3,}|`{3,})\{exercise(?:-start)?\}.*?^:label: *(?P<label>\S+)$", re.MULTILINE | re.DOTALL
)
SOLUTION = re.compile(
    r"^(?P<fence>:{3,}|`{3,})\{solution\} *(?P<label>\S+)\n(?::[\w-]+:[^\n]*\n)*(?P<text>.*?)^(?P=fence) *$\n?",
    re.MULTILINE | re.DOTALL,
)
DETAILS = re.compile(
    r'^<details\s+class="(?P<kind>hint|solution)"\s*>\s*<summary>.*?</summary>(?P<text>.*?)</details>[ \t]*$\n?',
    re.MULTILINE | re.DOTALL,
)
SOLUTION_IN_CODE = re.compile(r"\A# @title (?P<kind>Solution|Hint).*\n+")
LINK = re.compile(r"\]\((?P<page>[\w/-]+)\.(?:md|ipynb)(?P<anchor>#[\w-]+)?\)")
ROLE = re.compile(r"\{(?:py:)?(?:func|class|meth|mod|attr|data)\}`~?(?:[^`<]*<)?([^`>]+)>?`")
PICTURE = re.compile(r"(figures/[\w-]+)\.svg")
SLACK = 15.0  # points by which a line, or a page, may stand out before somebody sees it
FAULT = re.compile(
    r"^(?:Missing character: |LaTeX Warning: (?:Hyper r|R)eference .* undefined|"
    r"Overfull \\[hv]box \((?P<points>\d+\.\d+)pt too (?:wide|high)\)).*$",
    re.MULTILINE,
)


# --- what a chapter is on paper ---------------------------------------------------------------------------------------


@dataclass
class Back:
    """What goes from the middle of a chapter to its end.

    Attributes:
        hints: by the label of the exercise, the cells that help with it.
        solutions: by the label of the exercise, the cells that solve it.
        answers: to the quizzes, in their order.
    """

    hints: dict[str, list[Any]] = field(default_factory=dict)
    solutions: dict[str, list[Any]] = field(default_factory=dict)
    answers: list[str] = field(default_factory=list)

    def add(self, kind: str, label: str, cell: Any) -> None:
        """Keep a cell for the end of the chapter; ``kind`` is ``"hint"`` or ``"solution"``."""
        (self.hints if kind == "hint" else self.solutions).setdefault(label, []).append(cell)

    def cells(self) -> list[Any]:
        """The last sections of the chapter."""
        found = []
        if self.answers:
            found.append(prose("## Answers\n\n" + "\n".join(self.answers)))
        for heading, entries in (("Hints", self.hints), ("Solutions", self.solutions)):
            for number, (label, cells) in enumerate(entries.items()):
                head = f"## {heading}\n\n" if number == 0 else ""
                found += [prose(f"{head}**{{ref}}`{label}`**"), *cells]
        return found


def prose(text: str) -> Any:
    """A Markdown cell."""
    return nbformat.v4.new_markdown_cell(text)


def for_paper(notebook: Any, name: str, site: str) -> Any:
    """A chapter as it is printed.

    Args:
        notebook: with its outputs; it is changed.
        name: of the chapter, for its address.
        site: address at which the book is published.

    Returns:
        The notebook.

    Raises:
        build.BookError: for a hint or a solution that no exercise stands before.
    """
    cells: list[Any] = []
    back, label = Back(), ""
    for cell in notebook.cells:
        if "remove-cell" in cell.metadata.get("tags", []):
            continue
        if cell.cell_type != "code":
            text, label = without_solutions(cell.source, label, back, name)
            cell.source = on_paper(text, site)
            if cell.source.strip():
                cells.append(cell)
            continue
        solution = SOLUTION_IN_CODE.match(cell.source)
        code_on_paper(cell, f"{site}/{name}.html", back)
        if solution is None:
            cells.append(cell)
        elif label:
            cell.source = cell.source[solution.end() :]
            back.add(solution["kind"].lower(), label, cell)
        else:
            raise build.BookError(f"{name}: a solution in code stands before every exercise that has a label")
    notebook.cells = cells + back.cells()
    notebook.metadata.pop("widgets", None)
    return notebook


def without_solutions(text: str, label: str, back: Back, name: str) -> tuple[str, str]:
    """Take hints and solutions out of Markdown.

    Args:
        text: of a cell.
        label: of the exercise before it, ``""`` for none.
        back: what is taken out goes there.
        name: of the page, for the message.

    Returns:
        The text that is left, and the label of its last exercise.
    """
    found = [match for pattern in (EXERCISE, SOLUTION, DETAILS) for match in pattern.finditer(text)]
    for match in sorted(found, key=lambda match: match.start()):
        groups = match.groupdict()
        label = groups.get("label", label)
        if match.re is EXERCISE:
            continue
        if not label:
            raise build.BookError(f"{name}: a hint or solution stands before every exercise that has a label")
        back.add(groups.get("kind", "solution"), label, prose(groups["text"].strip()))
    return DETAILS.sub("", SOLUTION.sub("", text)), label


def on_paper(text: str, site: str) -> str:
    """Markdown with what leads to pages of the site alone as addresses, and with pictures that LaTeX reads."""

    def link(match: re.Match[str]) -> str:
        if not SITE_ONLY.fullmatch(match["page"]):
            return match[0]
        return f"]({site}/{match['page']}.html{match['anchor'] or ''})"

    return PICTURE.sub(r"\1.pdf", ROLE.sub(r"`\1`", LINK.sub(link, text)))


def code_on_paper(cell: Any, address: str, back: Back) -> None:
    """Make a code cell printable, in place.

    Folded code is left out, as are the replies of checks that nobody has given an answer. A quiz becomes text, an
    explorer a box.

    Args:
        cell: with the outputs of the site.
        address: of the page.
        back: the answer to a quiz goes there.
    """
    tags = set(cell.metadata.get("tags", []))
    if "hide-input" in tags:
        tags.add("remove-input")
    outputs, columns, asked = [], [""], build.quiz_of(cell.source)
    for output in cell.outputs:
        data = output.get("data", {})
        html, text = data.get("text/html", ""), data.get("text/plain", output.get("text", ""))
        if text.startswith(UNANSWERED):
            continue
        if asked is not None and "sal-quiz" in html:
            tags.add("remove-input")
            output.data = {"text/markdown": question(quiz(asked), back)}
        elif build.WIDGET_VIEW in data or "<script" in html:
            output.data = {"text/markdown": box(text, address)}
        else:
            data.pop("text/html", None)
            columns += [line for line in text.splitlines() if "  " in line.strip()]
        outputs.append(output)
    cell.outputs = outputs
    tags |= {tag for tag, limit in WIDE.items() if max(map(len, columns)) > limit}
    cell.metadata["tags"] = sorted(tags - {"hide-input", "hide-output", "hide-cell"})


def question(asked: Quiz, back: Back) -> str:
    """Markdown of a quiz, whose right options go to the chapter's end."""
    first, *options = repr(asked).splitlines()
    lettered = zip(options, asked.options, strict=True)
    right = [f"{text.partition(' ')[0]} {option.feedback}" for text, option in lettered if option.right]
    back.answers.append(f"{len(back.answers) + 1}. {' '.join(right)}")
    return "\n\n".join([f"**Question {len(back.answers)}.** {first}", *options])


def box(text: str, address: str) -> str:
    """Markdown of what stands in the place of an explorer.

    Args:
        text: what the explorer says where it cannot be shown.
        address: of the page on which it can be moved.
    """
    said = text.removeprefix(PLACEHOLDER).strip() if text.startswith(PLACEHOLDER) else ""
    return f":::{{admonition}} Interactive on the page\n:class: note\n{said} <{address}>\n:::"


# --- the book on paper ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Part:
    """Chapters that belong together.

    Attributes:
        title: ``""`` for what stands before the first part.
        numbered: whether its chapters have numbers.
        names: of its pages.
    """

    title: str
    numbered: bool
    names: list[str]

    @property
    def opening(self) -> str:
        """Markdown that begins the part, to stand at the end of the page before it."""
        latex = rf"\bookpart{{{self.title}}}" if self.numbered else r"\backpart"
        return f"\n\n```{{raw}} latex\n{latex}\n```\n"


def contents(book: Path = build.BOOK) -> list[Part]:
    """What is printed.

    Args:
        book: folder with ``_toc.yml``.
    """
    toc = yaml.safe_load((book / "_toc.yml").read_text("utf-8"))
    parts = [Part("", False, [toc["root"]])]
    for part in toc["parts"]:
        files = [file["file"] for chapter in part["chapters"] for file in (chapter, *chapter.get("sections", ()))]
        names = [name for name in files if not SITE_ONLY.fullmatch(name)]
        # LaTeX collects the cited works at the very end, so this is where their page has to stand.
        names.sort(key=lambda name: name == BIBLIOGRAPHY)
        parts.append(Part(part["caption"], part.get("numbered", False), names))
    return [part for part in parts if part.names]


def copy_for_paper(parts: list[Part], to: Path, book: Path = build.BOOK) -> None:
    """Write the printed form of the book into a folder, which is made anew.

    Args:
        parts: from :func:`contents`.
        to: the folder.
        book: the folder with notebooks and pages, which is not changed.

    Raises:
        build.BookError: for a page that is not there.
    """
    shutil.rmtree(to, ignore_errors=True)
    shutil.copytree(book / "figures", to / "figures", ignore=shutil.ignore_patterns("*.py", "*.svg"))
    shutil.copy(book / "references.bib", to)
    site = site_address()
    for part, following in zip(parts, [*parts[1:], None], strict=True):
        for name in part.names:
            end = following.opening if following and name == part.names[-1] else ""
            if (book / f"{name}.ipynb").is_file():
                notebook = for_paper(nbformat.read(book / f"{name}.ipynb", as_version=4), name, site)
                notebook.cells.append(prose(end))
                nbformat.write(notebook, to / f"{name}.ipynb")
            elif (book / f"{name}.md").is_file():
                text = on_paper((book / f"{name}.md").read_text("utf-8"), site)
                (to / f"{name}.md").write_text(text + end, "utf-8")
            else:
                raise build.BookError(f"book/_toc.yml lists {name}: there is neither {name}.ipynb nor {name}.md")
    title = yaml.safe_load((build.ROOT / "_config.yml").read_text("utf-8"))["title"]
    (to / "cover.md").write_text(f"# {title}\n", "utf-8")
    toc = {
        "format": "jb-book",
        "root": "cover",
        "parts": [
            {
                "caption": part.title or "Contents",
                "numbered": part.numbered,
                "chapters": [{"file": n} for n in part.names],
            }
            for part in parts
        ],
    }
    (to / "_toc.yml").write_text(yaml.safe_dump(toc, sort_keys=False), "utf-8")


def site_address() -> str:
    """Where the book is published: ``html: baseurl`` of ``_config.yml``, or else the repository's GitHub Pages."""
    settings = yaml.safe_load((build.ROOT / "_config.yml").read_text("utf-8"))
    owner, _, name = build.repository().slug.partition("/")
    return str(settings.get("html", {}).get("baseurl") or f"https://{owner}.github.io/{name}").rstrip("/")


def configuration() -> dict[str, Any]:
    """The settings of ``_config.yml`` with those of LaTeX."""
    settings: dict[str, Any] = yaml.safe_load((build.ROOT / "_config.yml").read_text("utf-8"))
    facts = {
        "licence": settings["html"]["extra_footer"].strip(),
        "address": site_address(),
        "version": build.project()["version"],
    }
    commands = [rf"\newcommand{{\book{name}}}{{{text}}}" for name, text in facts.items()]
    settings["html"].pop("favicon", None)  # the copy has no SVG, and a page of paper no tab
    settings["latex"] = {
        "latex_engine": "xelatex",
        # Its class wants fonts and packages that the book does not use, and numbers chapters by their sections.
        "use_jupyterbook_latex": False,
        "latex_documents": {"targetname": f"{NAME}.tex", "author": settings["author"]},
    }
    settings["sphinx"]["config"] |= {
        "nb_render_markdown_format": "myst",
        "latex_docclass": {"manual": "book"},
        "latex_table_style": ["booktabs"],
        "latex_show_urls": "no",
        "latex_use_xindy": False,
        "latex_additional_files": [str(STYLE / "fonts.tex"), str(STYLE / "book.tex")],
        "latex_elements": {
            "papersize": "a4paper",
            "pointsize": "11pt",
            "extraclassoptions": "openany",
            "figure_align": "htbp",
            "fncychap": "",
            "fontpkg": r"\input{fonts.tex}",
            "preamble": "\n".join([*commands, r"\input{book.tex}"]),
            "maketitle": r"\booktitle",
        },
    }
    return settings


def missing_programs() -> list[str]:
    """The programs and fonts that the PDF needs and this machine lacks."""
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    if "xelatex" not in missing:
        missing += [
            file
            for file in FONTS
            if not subprocess.run(["kpsewhich", file], capture_output=True, text=True).stdout.strip()
        ]
    return missing


def write_latex(parts: list[Part], to: Path, book: Path = build.BOOK) -> Path:
    """Make LaTeX of the book; a warning is an error.

    Args:
        parts: from :func:`contents`.
        to: the folder for everything that is made on the way.
        book: the folder with notebooks and pages.

    Returns:
        The LaTeX file.

    Raises:
        build.BookError: with what Sphinx said.
    """
    copy = to / "book"
    copy_for_paper(parts, copy, book)
    for drawing in (book / "figures").glob("*.svg"):
        target = copy / "figures" / f"{drawing.stem}.pdf"
        if shutil.which("rsvg-convert"):
            subprocess.run(["rsvg-convert", "--format=pdf", f"--output={target}", str(drawing)], check=True)
        else:  # the LaTeX can be made and looked at, and says what it lacks when it is set
            target.write_bytes(b"")
    shutil.rmtree(to / "_build", ignore_errors=True)
    config = to / "_config.yml"
    config.write_text(yaml.safe_dump(configuration(), sort_keys=False, allow_unicode=True), "utf-8")
    command = [str(Path(sysconfig.get_path("scripts")) / "jupyter-book"), "build", str(copy), "--builder", "latex"]
    command += ["--config", str(config), "--toc", str(copy / "_toc.yml"), "--path-output", str(to)]
    command += ["-n", "-W", "--keep-going"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=build.ROOT, env=os.environ | {"NO_COLOR": "1"})
    if done.returncode != 0:
        lines = (done.stdout + done.stderr).splitlines()
        telling = [line for line in lines if re.search(r"WARNING|ERROR|CRITICAL|\w+Error: .", line)] or lines[-20:]
        raise build.BookError("the LaTeX could not be made:\n" + "\n".join(telling))
    return to / "_build" / "latex" / f"{NAME}.tex"


def typeset(latex: Path) -> Path:
    """Make pages of LaTeX.

    Args:
        latex: from :func:`write_latex`.

    Returns:
        The PDF, beside it.

    Raises:
        build.BookError: with what XeLaTeX said, for an error, a character without a glyph, a reference without a
            target, or a line that runs off the page.
    """
    command = ["latexmk", "-xelatex", "-interaction=nonstopmode", "-halt-on-error", "-file-line-error", latex.name]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", cwd=latex.parent)
    log = latex.with_suffix(".log")
    said = log.read_text("utf-8", errors="replace") if log.is_file() else done.stdout
    if done.returncode != 0:
        lines = said.splitlines()
        wrong = [i for i, line in enumerate(lines) if re.match(r"!|\S+:\d+: ", line)][:1] or [len(lines) - 20]
        raise build.BookError("the pages could not be made:\n" + "\n".join(lines[wrong[0] : wrong[0] + 8]))
    faults = [match[0] for match in FAULT.finditer(said) if float(match["points"] or SLACK) >= SLACK]
    if faults:
        raise build.BookError("the pages have faults:\n" + "\n".join(dict.fromkeys(faults)))
    return latex.with_suffix(".pdf")


def make_pdf(to: Path = build.BUILD / "pdf", book: Path = build.BOOK) -> Path:
    """Make the PDF of the book.

    Args:
        to: the folder for the PDF, and for everything that is made on the way.
        book: the folder with notebooks and pages.

    Raises:
        build.BookError: where the programs are missing, or for what they find wrong.
    """
    missing = missing_programs()
    if missing:
        raise build.BookError(f"the PDF needs {', '.join(missing)}: sudo apt-get install {PACKAGES}")
    pdf = to / f"{NAME}.pdf"
    shutil.copy(typeset(write_latex(contents(book), to, book)), pdf)
    return pdf


def main(arguments: list[str] | None = None) -> int:
    """Make the PDF; 0 if all went well, 1 after a message."""
    argparse.ArgumentParser(prog="book/pdf.py", description="Print the book.").parse_args(arguments)
    try:
        print("Making the PDF: this takes a few minutes ...", flush=True)
        print(f"The book is printed: {make_pdf()}")
    except build.BookError as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
