"""Links that leave the site are listed, not followed: each leads to a reviewed host, those to ourselves to a file."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import build
import links
import pytest

# Hosts that the book may send its readers to. A new one is added here by somebody who has looked at it.
REVIEWED = {
    "arxiv.org": "papers",
    "cdn.jsdelivr.net": "reveal.js for slides that were made without npm",
    "colab.research.google.com": "chapters to run, and the badge",
    "creativecommons.org": "the licence of the prose",
    "cs231n.stanford.edu": "the report on Tiny ImageNet, which has no other address",
    "distill.pub": "papers",
    "doi.org": "papers",
    "github.com": "this repository, and code that the book names",
    "scikit-image.org": "where the photographs come from",
}
WITHOUT_TLS = {"cs231n.stanford.edu"}
FORMS = {"arxiv.org": r"/abs/\d{4}\.\d{4,5}", "doi.org": r"/10\.\d{4,}/\S+"}


def complaints(address: str) -> list[str]:
    """What is wrong with an external address, as far as one can say without asking it."""
    parts = urlsplit(address)
    host = parts.hostname or ""
    found = [] if host in REVIEWED else [f"{host} is not reviewed"]
    if parts.scheme != "https" and host not in WITHOUT_TLS:
        found.append("not https")
    if host in FORMS and not re.fullmatch(FORMS[host], parts.path):
        found.append(f"not the form of {host}: {FORMS[host]}")
    slug = build.repository().slug
    inside = re.match(rf"(?:/github)?/{re.escape(slug)}(?:/(?:blob|tree|edit)/([^/]+)/(.+?))?/?$", parts.path)
    if inside and inside[2]:
        if inside[1] != build.repository().branch:
            found.append(f"not the branch {build.repository().branch}")
        if not (build.ROOT / unquote(inside[2])).exists():
            found.append("no such file in this repository")
    elif host == "colab.research.google.com" and not parts.path.startswith("/assets/"):
        found.append("opens no notebook of this repository")
    elif parts.path == f"/{slug}/issues/new":
        page = parse_qs(parts.query)["title"][0].rpartition("/")[2].removesuffix(".html")
        made = {"genindex", "search", "py-modindex"}
        if page not in {name.rpartition("/")[2] for name in build.pages()} | made:
            found.append("an issue on a page that is not there")
    return [f"{address}: {what}" for what in found]


def test_every_external_link_of_the_site_is_reviewed(site):
    listed = links.external(site)
    assert len(listed) > 50
    assert [f"{what} ({', '.join(pages)})" for address, pages in listed.items() for what in complaints(address)] == []


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "CITATION.cff", "pyproject.toml"])
def test_links_and_badges_of_the_repository_lead_somewhere(name):
    text = (build.ROOT / name).read_text("utf-8")
    addresses = re.findall(r"https?://[^\s)>\"'`]+", text)
    assert [what for address in addresses for what in complaints(address)] == []


@pytest.mark.parametrize(
    ("address", "told"),
    [
        ("https://arxiv.org/abs/1706.03825", ""),
        ("https://arxiv.org/pdf/1706.03825", "not the form"),
        ("https://doi.org/1016/x", "not the form"),
        ("https://example.com/x", "not reviewed"),
        ("http://github.com/x/y", "not https"),
        ("REPOSITORY", ""),
        ("REPOSITORY/blob/main/book/src/03-checkerboard.md", ""),
        ("REPOSITORY/blob/main/book/src/03-chessboard.md", "no such file"),
        ("REPOSITORY/blob/master/README.md", "not the branch"),
        ("https://colab.research.google.com/assets/colab-badge.svg", ""),
        ("https://colab.research.google.com/github/SLUG/blob/main/book/03-checkerboard.ipynb", ""),
        ("https://colab.research.google.com/github/SLUG/blob/main/book/03-chessboard.ipynb", "no such file"),
        ("https://colab.research.google.com/github/someone/else/blob/main/a.ipynb", "no notebook of this"),
        ("REPOSITORY/issues/new?title=Issue%20on%20page%20%2Fglossary.html", ""),
        ("REPOSITORY/issues/new?title=Issue%20on%20page%20%2Fglosary.html", "not there"),
    ],
)
def test_what_is_wrong_with_an_address_is_told(address, told):
    here = build.repository()
    found = complaints(address.replace("REPOSITORY", here.url).replace("SLUG", here.slug))
    assert (told in "".join(found)) if told else found == []


def test_links_are_listed_with_the_pages_that_have_them(tmp_path: Path):
    (tmp_path / "api").mkdir()
    (tmp_path / "a.html").write_text(
        '<a href="https://b.org/x">b</a> <a href="b.html#c">c</a> <a href="#d">d</a>', "utf-8"
    )
    (tmp_path / "api" / "b.html").write_text(
        '<img src="//c.org/y.png"> <a href="https://b.org/x"></a> <a href="https://b.org/x"></a>'
        '<a href="mailto:a@b.org">e</a> <img src="data:image/png;base64,//c">',
        "utf-8",
    )
    assert links.external(tmp_path) == {"//c.org/y.png": ["api/b.html"], "https://b.org/x": ["a.html", "api/b.html"]}
