"""A lint of the book's prose: British spelling, and the voice that the book keeps.

Read are the Markdown files as their authors write them: running text, headings, tables, captions, alt texts and
quizzes. Code, formulas, citations and addresses are no prose.

    python tests/prose.py            # the whole book
    python tests/prose.py FILE ...
"""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import yaml
from spylls.hunspell import Dictionary

ROOT = Path(__file__).resolve().parent.parent
# SCOWL's list for British English with "ise", see the licence beside it. One of our own, so that all see the same.
BRITISH = Path(__file__).parent / "dictionary" / "en_GB-ise"
WORDS = ROOT / "book" / "words.txt"
LONGEST_SENTENCE = 60  # words
CUT = "¤"  # stands for what is no prose
BEGINS = re.compile(r"\s*($|#|[-*+] |\d+\. |\||```|:::|\+\+\+)")  # something else than the paragraph before

# What the book does not say, and why or what instead. Case does not matter.
PHRASES = {
    r"it (is|should be|must be) (important to|worth noting|worth mentioning|interesting to|noted)": "say it",
    r"needless to say|it goes without saying|as you can see|at the end of the day|in this (section|chapter),? we will":
        "filler",
    r"obviously|trivially|of course|(?-i:Clearly)": "a reader to whom it is not feels stupid",
    r"basically|essentially|actually|literally|quite simply": "filler",
    r"(?<!not )(simply|just|easily) (add|call|choose|click|press|run|set|type|use)": "readers see how easy it is",
    r"(very|extremely|most|highly|quite) (unique|optimal|identical|exact|perfect)": "there are no degrees of it",
    r"in order to": "to",
    r"due to the fact that|owing to the fact that": "because",
    r"a (large|great) number of|a plethora of|a myriad of?": "many, or how many",
    r"utili[sz]\w*|leverag(e[sd]?|ing)": "use",
    r"delv\w+|deep dive|dive into|unleash\w*|unlock the": "hype",
    r"powerful|seamless(ly)?|cutting[- ]edge|state[- ]of[- ]the[- ]art|ground-?breaking|revolution\w+|game[- ]chang\w+":
        "hype",
    r"amazing(ly)?|incredibl[ey]|awesome|fantastic|exciting|stunning|super easy": "hype",
    r"novel (method|approach)|outperform(s|ed)?": "say by how much",
    r"haematox\w*": "the book writes hematoxylin, as its stain matrices do",
}  # fmt: skip
MARKS = {
    r"\b(\w+)\s+\1\b": "a word twice",
    r"\S {2,}(?=\S)": "two spaces",
    r"[“”‘’]": "a curly quotation mark; the book has straight ones",
    r"\s(--|–|—)\s": "a dash; a comma, a colon or a new sentence does",
    rf"[\w{CUT}] [,;.?!](?![\w.])": "a space before the mark",
    r"[a-z](,|;)[A-Za-z]": "no space after the mark",
    r"(?-i:\ba (?!eu|on[ec])[aeio]\w+|\b[Aa]n (?!x-)[b-dfgj-np-tv-z]\w+)": "a or an",
}


@dataclass(frozen=True)
class Passage:
    """Prose that belongs together: a paragraph, an item of a list, a caption.

    Attributes:
        path: of the file.
        line: in which it begins, from 1.
        text: with the file's line breaks, and without its markup.
        kind: ``"text"``, ``"caption"``, ``"alt"`` or ``"quiz"``.
    """

    path: Path
    line: int
    text: str
    kind: str = "text"

    def at(self, position: int) -> str:
        """``file:line`` of a position in the text."""
        path = self.path.relative_to(ROOT) if self.path.is_relative_to(ROOT) else self.path
        return f"{path}:{self.line + self.text.count(chr(10), 0, position)}"


def files() -> list[Path]:
    """Everything that a reader of the book, or of the repository's front page, is given to read."""
    pages = [page for folder in (".", "src", "api") for page in sorted((ROOT / "book" / folder).glob("*.md"))]
    made = ROOT / "book" / "status.md"
    return [*(page for page in pages if page != made), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]


# ---- what is prose


def passages(path: Path) -> Iterator[Passage]:
    """The prose of a Markdown file, in order."""
    lines = path.read_text("utf-8").split("\n")
    at = lines.index("---", 1) + 1 if lines[0] == "---" else 0
    inside: list[str] = []  # the directives that are open
    while at < len(lines):
        line = lines[at]
        if fence := re.match(r"( *)(`{3,})(.*)", line):
            end = next(i for i in range(at + 1, len(lines)) if lines[i].strip() == fence[2])
            if fence[3].startswith("{code-cell}"):
                yield from _cell(path, at + 2, "\n".join(lines[at + 1 : end]))
            at = end + 1
        elif opening := re.match(r" *:{3,}\{([\w-]+)\} *(.*)", line):
            inside.append(opening[1])
            if opening[1] != "figure":
                yield from _passage(path, at + 1, opening[2])
            at += 1
            while option := re.match(r" *:([\w-]+):(.*)", lines[at]):
                if option[1] == "alt":
                    yield from _passage(path, at + 1, option[2], "alt")
                at += 1
        elif re.fullmatch(r" *:{3,}", line):
            inside.pop()
            at += 1
        elif re.match(r" *\|", line):
            for cell in re.split(r"(?<!\\)\|", line):
                yield from _passage(path, at + 1, cell)
            at += 1
        else:
            end = at + 1
            alone = re.match(r" *#", line) or ("glossary" in inside and re.match(r"\w", line))
            while not alone and end < len(lines) and not BEGINS.match(lines[end]):
                end += 1
            yield from _passage(path, at + 1, "\n".join(lines[at:end]), "caption" if "figure" in inside else "text")
            at = end


def _cell(path: Path, line: int, source: str) -> Iterator[Passage]:
    """Caption, alt text and quiz of a code cell."""
    if head := re.match(r"---\n(.*?)\n---$", source, re.DOTALL | re.MULTILINE):
        for key, value in _leaves(yaml.compose(head[1])):
            if key in ("alt", "caption"):
                yield from _passage(path, line + 1 + value.start_mark.line, value.value, key)
    for text in re.finditer(r'quiz\(r?"""(.*?)"""', source, re.DOTALL):
        start = line + source.count("\n", 0, text.start(1))
        for number, part in enumerate(text[1].split("\n")):
            yield from _passage(path, start + number, part, "quiz")
    for text in re.finditer(r'\balt="([^"]*)"', source):
        yield from _passage(path, line + source.count("\n", 0, text.start()), text[1], "alt")


def _leaves(node: yaml.Node) -> Iterator[tuple[str, yaml.ScalarNode]]:
    for key, value in node.value if isinstance(node, yaml.MappingNode) else []:
        if isinstance(value, yaml.ScalarNode):
            yield key.value, value
        yield from _leaves(value)


def _passage(path: Path, line: int, text: str, kind: str = "text") -> Iterator[Passage]:
    found = plain(text)
    if re.search(r"\w", found):
        yield Passage(path, line, found, kind)


def plain(text: str) -> str:
    """Markdown without its markup, in as many lines."""
    for pattern, instead in (
        (r"(?s)<!--.*?-->", ""),
        (r"^%.*$|^\([\w-]+\)=$|^\+\+\+.*$", ""),
        (r"\{term\}`([^`<]*?)\s*(?:<[^`]*>)?`", r"\1"),
        (r"\{(?:ref|doc|download)\}`([^`<]*?)\s*<[^`]*>`", r"\1"),
        (r"(?s)\{[\w:]+\}`[^`]*`|(`+).*?\1", CUT),
        (r"(?s)\$\$.*?\$\$(?: *\([\w-]+\))?|\$.+?\$", CUT),
        (r"!?\[([^][]*)\]\((?:[^()]|\([^()]*\))*\)", r"\1"),  # the badges of the front page are pictures in links
        (r"!?\[([^][]*)\]\((?:[^()]|\([^()]*\))*\)", r"\1"),
        (r"<?https?://[^\s>)]+>?", CUT),
        (r"</?[a-z][^<>]*>", ""),
        (r"&\w+;", " "),
        (r"^ *(?:#+|[-*+]|\d+\.|>) +", ""),
        (r"\*\*|\*|(?<!\w)_|_(?!\w)|\\(?=\W)", ""),
        (r"^ +", ""),
    ):

        def cut(match: re.Match[str], instead: str = instead) -> str:
            new = match.expand(instead)
            return new + "\n" * (match[0].count("\n") - new.count("\n"))

        text = re.sub(pattern, cut, text, flags=re.MULTILINE)
    return text


# ---- what is wrong with it


@cache
def dictionary() -> Dictionary:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # spylls leaves its files to the garbage collector
        return Dictionary.from_files(str(BRITISH))


@cache
def terms() -> frozenset[str]:
    """The words of ``book/words.txt``; one in small letters may begin a sentence."""
    return frozenset(WORDS.read_text("utf-8").split())


def words(passage: Passage) -> Iterator[tuple[int, str]]:
    """Position and word, for every word that has a spelling: no names with digits, no abbreviations in capitals.

    A compound with hyphens is one word where ``book/words.txt`` has it, and else as many as it has parts.
    """
    for whole in re.finditer(rf"(?<![\w.@/{CUT}-])\w+(?:['-]\w+)*(?![\w@])", passage.text):
        if whole[0] in terms():
            yield whole.start(), whole[0]
            continue
        for part in re.finditer(r"[^-]+", whole[0]):
            word = part[0].removesuffix("'s")
            if re.fullmatch(r"[A-Za-zÀ-ÿ']{2,}", word) and not re.fullmatch(r"[A-Z']+s?", word):
                yield whole.start() + part.start(), word


@cache
def is_word(word: str) -> bool:
    """Whether it is British English or a term of the book, in the plural or not."""
    forms = {word, word.removesuffix("s"), word[0].lower() + word[1:], (word[0].lower() + word[1:]).removesuffix("s")}
    return bool(forms & terms()) or bool(dictionary().lookup(word))


def problems(passage: Passage) -> Iterator[str]:
    """One line for each thing that is wrong, with ``file:line``."""
    text = passage.text
    for position, word in words(passage):
        if not is_word(word):
            yield f"{passage.at(position)}: {word!r} is neither British English nor in {WORDS.relative_to(ROOT)}"
    for pattern, why in [(rf"\b({phrase})\b", why) for phrase, why in PHRASES.items()] + list(MARKS.items()):
        for match in re.finditer(pattern, text, re.IGNORECASE):
            yield f"{passage.at(match.start())}: {' '.join(match[0].split())!r}: {why}"
    start = 0
    for end in [m.end() for m in re.finditer(r"[.?!][\"')]*(\s+|$)", text)] + [len(text)]:
        if (length := len(re.findall(r"\w+", text[start:end]))) > LONGEST_SENTENCE:
            yield f"{passage.at(start)}: a sentence of {length} words"
        start = end
    if passage.kind in ("caption", "alt"):
        if ": " in text:
            yield f"{passage.at(text.index(': '))}: a colon in a text that YAML reads: {passage.kind}"
        if not re.search(r"[.?!][\"')]?\s*$", text):
            yield f"{passage.at(len(text))}: no full stop at the end: {passage.kind}"


def lint(paths: Iterable[Path]) -> list[str]:
    """All problems of some files."""
    return [problem for path in paths for passage in passages(path) for problem in problems(passage)]


if __name__ == "__main__":
    found = lint([Path(argument).resolve() for argument in sys.argv[1:]] or files())
    print("\n".join(found) or "nothing to mend")
    sys.exit(bool(found))
