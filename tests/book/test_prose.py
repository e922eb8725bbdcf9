"""The book is written in British English and in its own voice, and the lint that says so finds what is planted."""

from __future__ import annotations

from pathlib import Path

import prose
import pytest

PAGE = """---
kernelspec: {display_name: Python 3}
---

# A color in a heading

Text with `color` as code, $color$ as a formula,
and color as a word; see [a link](https://color.org) and {cite}`color2020`.

| a table | of color |
|---|---|

:::{figure} color.png
:name: fig-color
:alt: An alt text in color.

A caption in color.
:::

:::{admonition} A title in color
- An item
  in color.
:::

```{code-cell} ipython3
---
mystnb:
  image:
    alt: A grey cat in color.
  figure: {caption: What color says., name: fig-colors}
---
color = plt.cm.color("color")  # color
```

```{code-cell} ipython3
:tags: [remove-input]

sal.widgets.quiz(r\"\"\"
What is it?
+ A color.
  As `color` says.
\"\"\")
```

```bash
color
```

:::{glossary}
color
  A {term}`color`, or {term}`hue <color>`.
:::
"""
WHERE = [5, 8, 10, 15, 17, 20, 22, 29, 30, 40, 50, 51]
AMERICAN = "color normalize grayscale tumor center labeled behavior modeling analyze".split()
WRONG = [*AMERICAN, "teh", "checkerbord", "Smoothgrad", "haematoxylin", "reciever's"]
RIGHT = """
colour, normalise, grey, tumour, centre, labelled, behaviour, modelling, analyse, hematoxylin
Saliency of saliency maps: the logits' signs, ReLUs and NormGrad's ROC
scikit-image, a class-sensitive map, ResNet34, layer2.1, the $k$-th of them
an MRI, a unit, a one, an hour, a European one
`color` and <https://color.org>
We cannot simply set it to 1.
"""


def found(text: str, kind: str = "text") -> list[str]:
    return list(prose.problems(prose.Passage(Path("page.md"), 1, prose.plain(text), kind)))


@pytest.mark.parametrize("path", prose.files(), ids=lambda path: str(path.relative_to(prose.ROOT)))
def test_nothing_is_to_be_mended(path):
    assert prose.lint([path]) == []


def test_every_page_of_the_book_is_read():
    names = {path.relative_to(prose.ROOT).as_posix() for path in prose.files()}
    assert {"README.md", "CONTRIBUTING.md", "book/api.md", "book/api/explain.md", "book/src/intro.md"} <= names
    assert {passage.kind for path in prose.files() for passage in prose.passages(path)} == {
        *("text", "caption", "alt", "quiz")
    }


def test_a_word_is_found_wherever_a_reader_meets_it_and_nowhere_else(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(PAGE, "utf-8")
    told = "'color' is neither British English nor in book/words.txt"
    assert prose.lint([page]) == [f"{page}:{line}: {told}" for line in WHERE]


@pytest.mark.parametrize("word", WRONG)
def test_what_is_not_british_english_is_found(word):
    assert [word in problem and problem.startswith("page.md:2: ") for problem in found(f"We see\nthe {word}.")] != []


@pytest.mark.parametrize("text", [*RIGHT.strip().split("\n"), "two\n  lines"])
def test_what_is_right_is_let_through(text):
    assert found(text) == []


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("It is important to note that it is smooth.", "say it"),
        ("A very unique map.", "no degrees"),
        ("Obviously, it is smooth.", "feels stupid"),
        ("Just click on it.", "how easy"),
        ("Simply call the function.", "how easy"),
        ("In order to see it, look.", ": to"),
        ("A powerful method.", "hype"),
        ("We utilise it.", ": use"),
        ("This is the\nthe map.", "a word twice"),
        ("This is  the map.", "two spaces"),
        ("It says “smooth”.", "curly"),
        ("The map – a smooth one.", "a dash"),
        ("The map , a smooth one.", "before the mark"),
        ("The map,a smooth one.", "after the mark"),
        ("This is a image.", "a or an"),
        ("This is an map.", "a or an"),
        ("Maps " * 30 + "and " + "are smooth " * 15 + ".", "a sentence of 61 words"),
    ],
)
def test_what_the_book_does_not_say_is_found(text, told):
    assert any(told in problem for problem in found(text))


@pytest.mark.parametrize("kind", ["caption", "alt"])
def test_captions_and_alt_texts_end_with_a_full_stop_and_have_no_colon(kind):
    assert found("A grid.", kind) == found("Is it a grid?", kind) == []
    assert "no full stop" in "".join(found("A grid", kind))
    assert "a colon" in "".join(found("A grid: squares.", kind))
    assert found("A grid: squares") == []


def test_terms_are_sorted_needed_and_in_no_dictionary():
    listed = prose.WORDS.read_text("utf-8").splitlines()
    assert listed == sorted(set(listed), key=str.casefold)
    assert [word for word in listed if prose.dictionary().lookup(word)] == []
    said = {word for path in prose.files() for passage in prose.passages(path) for _, word in prose.words(passage)}
    said |= {word[0].lower() + word[1:] for word in said}
    assert [word for word in listed if not {word, f"{word}s"} & said] == [], "take them out of book/words.txt"
