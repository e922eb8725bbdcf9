"""What the site's theme is told and spared: a Sphinx extension."""

from __future__ import annotations

from typing import Any

from sphinx.application import Sphinx


def tidied(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: object) -> None:
    """Leave out thebe, which jupyter-book loads unasked and twice, and give the colour mode its name (page context).

    Both write an error on every page's console.
    """
    context["script_files"] = [
        script
        for script in context.get("script_files", [])
        if "thebe" not in f"{getattr(script, 'filename', '')} {getattr(script, 'attributes', {}).get('body', '')}"
    ]
    context["default_mode"] = "auto"


def setup(app: Sphinx) -> dict[str, Any]:
    """Connect the above to Sphinx, behind what adds scripts."""
    app.connect("html-page-context", tidied, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
