"""A question with options, each of which answers back."""

from __future__ import annotations

import re
from dataclasses import dataclass
from html import escape

FEWEST, MOST = 2, 6
SHORTEST = 15  # characters of a feedback; "Wrong." teaches nothing


@dataclass(frozen=True)
class Option:
    """One option of a question.

    Attributes:
        text: what can be chosen.
        right: whether it answers the question.
        feedback: what is said to who chooses it.
    """

    text: str
    right: bool
    feedback: str


@dataclass(frozen=True)
class Quiz:
    """A question, shown by the last line of a cell. Made by :func:`quiz`.

    It is HTML without a script: an option opens and shows its answer, on the book's page, in every notebook and on
    GitHub. In print, the question and its options stand as text.

    Attributes:
        question: the question.
        options: in the order in which they are shown.
    """

    question: str
    options: tuple[Option, ...]

    def _repr_html_(self) -> str:
        several = sum(option.right for option in self.options) > 1
        ask = " (More than one is right.)" if several else ""
        rows = [
            f"<details><summary>{_inline(option.text)}</summary>"
            f'<p class="sal-{"right" if option.right else "wrong"}">'
            f"<strong>{'Right.' if option.right else 'No.'}</strong> {_inline(option.feedback)}</p></details>"
            for option in self.options
        ]
        begin = f'<div class="sal-quiz tex2jax_process"><style>{STYLE}</style>'
        return "\n".join([begin, f"<p><strong>{_inline(self.question)}</strong>{ask}</p>", *rows, "</div>"])

    def __repr__(self) -> str:
        letters = "ABCDEF"
        lines = [f"{letters[i]}. {option.text}" for i, option in enumerate(self.options)]
        return "\n".join([self.question, *lines])


STYLE = (
    ".sal-quiz{border:1px solid #8a8a94;border-radius:6px;padding:.6em 1em;margin:.8em 0;max-width:700px}"
    ".sal-quiz>p{margin:0 0 .4em}"
    ".sal-quiz summary{cursor:pointer;padding:.25em 0}"
    ".sal-quiz details p{margin:.1em 0 .5em 1em;padding-left:.7em;border-left:4px solid}"
    ".sal-quiz p.sal-right{border-color:#009e73}"
    ".sal-quiz p.sal-wrong{border-color:#d55e00}"
)


def quiz(text: str) -> Quiz:
    """A question with options, each of which says why it is right or wrong.

    The text is the question, then one line an option, beginning with ``+`` where it is right and ``-`` where it is
    wrong, each followed by indented lines of feedback::

        A convolution with stride 2 receives a constant gradient. What does it hand down?
        - A constant.
          Every position would have to meet the same sum of taps.
        + A pattern with period 2.
          Neighbours meet disjoint sets of taps.

    `` `code` ``, ``*emphasis*`` and ``$formulas$`` are set as such. Where several options are right, the question says
    so.

    Args:
        text: as above.

    Raises:
        ValueError: for no question, fewer than two options or more than six, none that is right, options that are
            equal, or an option without feedback.
    """
    lines = [line for line in text.strip().splitlines() if line.strip()]
    starts = [i for i, line in enumerate(lines) if re.match(r"[-+] ", line)]
    if not starts or starts[0] == 0:
        raise ValueError("a quiz begins with its question, and its options begin with '+ ' or '- '")
    options = []
    for start, end in zip(starts, [*starts[1:], len(lines)], strict=True):
        feedback = " ".join(line.strip() for line in lines[start + 1 : end])
        option = Option(lines[start][2:].strip(), lines[start][0] == "+", feedback)
        if len(feedback) < SHORTEST:
            raise ValueError(f"the option {option.text!r} has the feedback {feedback!r}: say why, below it, indented")
        options.append(option)
    question = " ".join(line.strip() for line in lines[: starts[0]])
    if not FEWEST <= len(options) <= MOST or len({option.text for option in options}) < len(options):
        raise ValueError(f"{question!r} has {len(options)} options: expected {FEWEST} to {MOST} different ones")
    if not any(option.right for option in options):
        raise ValueError(f"{question!r} has no right option: begin one with '+ '")
    return Quiz(question, tuple(options))


def _inline(text: str) -> str:
    """HTML of a line with `` `code` ``, ``*emphasis*`` and ``$formulas$``, which MathJax sets wherever it is there."""
    html = []
    for part in re.split(r"(`[^`]+`|\$[^$]+\$|\*[^*\s][^*]*\*)", text):
        inner = escape(part[1:-1], quote=False)
        if part.startswith("`") and part.endswith("`") and inner:
            html.append(f"<code>{inner}</code>")
        elif part.startswith("$") and part.endswith("$") and inner:
            html.append(f'<span class="math notranslate nohighlight">\\({inner}\\)</span>')
        elif part.startswith("*") and part.endswith("*") and inner:
            html.append(f"<em>{inner}</em>")
        else:
            html.append(escape(part, quote=False))
    return "".join(html)
