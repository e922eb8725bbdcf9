"""The external links of a built site, listed and not followed.

python tests/links.py            # of _build/html
python tests/links.py FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path
from urllib.parse import urlsplit

from bs4 import BeautifulSoup

ROOT = Path(__file__).resolve().parent.parent
ATTRIBUTES = ("href", "src", "action", "poster", "data-src")


def external(site: Path) -> dict[str, list[str]]:
    """The pages that name each address beyond the site, sorted.

    Args:
        site: the folder of the HTML.
    """
    found: dict[str, list[str]] = {}
    for page in sorted(site.rglob("*.html")):
        for tag in BeautifulSoup(page.read_text("utf-8"), "html.parser").find_all(True):
            for address in {tag[name].strip() for name in ATTRIBUTES if tag.get(name)}:
                if urlsplit(address).netloc:
                    pages = found.setdefault(address, [])
                    pages += [str(page.relative_to(site))] * (str(page.relative_to(site)) not in pages)
    return dict(sorted(found.items()))


if __name__ == "__main__":
    for address, pages in external(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "_build" / "html").items():
        print(f"{address}  {', '.join(pages)}")
