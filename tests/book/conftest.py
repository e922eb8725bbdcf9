"""One execution of the book and one site, shared by all tests of this folder."""

from __future__ import annotations

from pathlib import Path

import build
import pytest


@pytest.fixture(scope="session")
def executed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of book/ in which every chapter was executed just now."""
    folder = tmp_path_factory.mktemp("executed") / "book"
    build.copy_pages(folder)
    build.execute_chapters(build.notebooks(), to=folder)
    return folder


@pytest.fixture(scope="session")
def site(executed: Path) -> Path:
    """The HTML folder of the site built from the notebooks executed just now."""
    return build.build_site(executed, executed.parent).parent
