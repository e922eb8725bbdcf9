"""One browser for the tests of a file."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import pytest
from browser import chromium, visiting


@pytest.fixture(scope="module")
def visit() -> Iterator[partial]:
    """``with visit(width) as visited:`` gives a page that may complain of nothing and ask nobody."""
    with chromium() as browser:
        yield partial(visiting, browser)
