"""The library's reference: every public name has an entry, and its docstring says what its arguments are."""

from __future__ import annotations

import importlib
import inspect
import re

import build
import pytest
from sphinx.util.inventory import InventoryFile

import smoothsal_lib as sal
from book import reference

ENTRIES = reference.entries()
FUNCTIONS = {name: value for name, value in ENTRIES.items() if inspect.isfunction(value)}


def entry_of(value: object) -> bool:
    return id(value) in reference.name_of()


@pytest.mark.parametrize("name", sal.__all__)
def test_every_public_name_has_an_entry(name):
    assert entry_of(getattr(sal, name))


@pytest.mark.parametrize("module", sorted({module for module, names in reference.blocks() if not names}))
def test_whole_modules_are_whole(module):
    module = importlib.import_module(module)
    assert reference.public(module)
    assert [name for name in reference.public(module) if not entry_of(getattr(module, name))] == []


def test_everything_that_chapters_import_has_an_entry():
    library = {
        value
        for path in sorted(build.SOURCES.glob("[0-9]*.md"))
        for value in reference.used(path.read_text("utf-8"))
        if inspect.isfunction(value) or inspect.isclass(value)
        if value.__module__.startswith("smoothsal_lib.") and ".exercises" not in value.__module__
    }
    assert len(library) > 40
    assert sorted(f"{value.__module__}.{value.__name__}" for value in library if not entry_of(value)) == []


def test_entries_reach_the_site(site):
    inventory = InventoryFile.load((site / "objects.inv").open("rb"), "", lambda base, path: path)
    documented = {name for kind, names in inventory.items() if kind.startswith("py:") for name in names}
    assert [name for name in ENTRIES if name not in documented] == []
    page = (site / "api" / "explain.html").read_text("utf-8")
    assert re.search(r"In the book: chapters</em> <a [^>]*01-gridded.html", page)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_docstrings_name_all_arguments(name):
    function = FUNCTIONS[name]
    said = own = inspect.getdoc(function) or ""
    for other in re.findall(r"[Aa]rguments[^.]* (?:are|is) those of :func:`([^`]+)`", own):
        said += inspect.getdoc(ENTRIES[reference.meaning(other, inspect.getmodule(function), name)])
    arguments = list(inspect.signature(function).parameters)
    assert own
    assert [argument for argument in arguments if not re.search(rf"(?<!\w){argument}(?!\w)", said)] == []


@pytest.mark.parametrize(
    ("target", "found"),
    [
        ("explain", "smoothsal_lib.explain"),
        ("smoothsal_lib.capture.capture", "smoothsal_lib.capture"),
        ("smoothsal_lib.plot.maps", "smoothsal_lib.plot.maps"),
        ("Surrogate.items", "smoothsal_lib.Surrogate.items"),
        ("_Look", ""),
        ("torch.nn.Conv2d", ""),
        ("smoothsal_lib.nothing", None),
        ("plot", None),
    ],
)
def test_roles_mean_what_they_mean_in_python(target, found):
    module = importlib.import_module("smoothsal_lib.explain") if target != "Surrogate.items" else sal.fixes
    assert reference.meaning(target, module, "smoothsal_lib.explain") == found


def test_examples_of_docstrings_become_literal_blocks():
    lines = ["Runs.", "", "    one = 1", "", "    two", "", "After.", "", "python -m x", "", "Args:", "    a: b.", ""]
    made = reference.literal(lines)
    assert made == [
        *("Runs.", "", "::", "", "    one = 1", "", "    two", "", "After.", "", "::", "", "    python -m x", ""),
        *("Args:", "    a: b.", ""),
    ]


def test_chapters_that_use_a_name_are_read_off_their_code():
    chapter = """
```{code-cell} ipython3
---
mystnb: {image: {alt: sal.widgets}}
---
import smoothsal_lib as sal
from smoothsal_lib.datasets import tissue as t

t.field(size=3), sal.plot.maps
```

sal.deletion is mentioned only.
"""
    names = {reference.name_of().get(id(value)) for value in reference.used(chapter)} - {None}
    assert {"smoothsal_lib.datasets.tissue.field", "smoothsal_lib.plot.maps"} <= names
    assert "smoothsal_lib.deletion" not in names
