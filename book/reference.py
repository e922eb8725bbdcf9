"""Sphinx extension: the library's reference, from its docstrings.

A page of ``book/api/`` names what it documents in blocks, a module and the names in it::

    ```{api} smoothsal_lib.metrics
    insertion
    deletion
    ```

Each becomes a table of summaries and the entries; without names it is all that the module itself defines for others.
An entry says which chapters use it, which is read off their code. Roles in docstrings (``:func:`maps```) mean what
they mean in Python, where the docstring stands: a name that is not there is an error, one that is there and has no
entry is set as code.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import GenericAlias, ModuleType, UnionType
from typing import Any

from docutils import nodes  # type: ignore[import-untyped]
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util.inspect import stringify_signature

BOOK = Path(__file__).resolve().parent
LIBRARY = "smoothsal_lib"
BLOCK = re.compile(r"^```\{api\} *(?P<module>[\w.]+)\n(?P<names>.*?)^```$", re.MULTILINE | re.DOTALL)
ROLE = re.compile(r":(?P<role>func|class|meth|mod|attr|data|exc):`~?(?P<target>[\w.]+)`")
CODE = re.compile(r"^```\{code-cell\}.*?$(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)
LONGEST_VALUE = 90  # characters of a constant's value that are shown


# --- what is documented, and under which name -------------------------------------------------------------------------


def public(module: ModuleType) -> list[str]:
    """What a module names in ``__all__``, or else the functions and classes that it defines, in its order."""
    if hasattr(module, "__all__"):
        return list(module.__all__)
    return [
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and (inspect.isfunction(value) or inspect.isclass(value))
        and value.__module__ == module.__name__
    ]


def blocks(folder: Path = BOOK / "api") -> Iterator[tuple[str, list[str]]]:
    """The blocks of all pages: module and names, which are empty for all, and a dash for none."""
    for path in sorted(folder.glob("*.md")):
        for match in BLOCK.finditer(path.read_text("utf-8")):
            yield match["module"], match["names"].split()


@cache
def entries() -> dict[str, Any]:
    """``{full name: object}`` of everything that has an entry; a name given in a block goes before a module's rest."""
    found: dict[str, Any] = {}
    for module, names in blocks():
        for name in (name for name in names if name != "-"):
            found[f"{module}.{name}"] = getattr(importlib.import_module(module), name)
    given = {id(value) for value in found.values()}
    for path, names in blocks():
        whole = importlib.import_module(path)
        if names in ([], ["-"]):
            found[path] = whole
        if not names:
            found |= {f"{path}.{n}": getattr(whole, n) for n in public(whole) if id(getattr(whole, n)) not in given}
    return found


@cache
def name_of() -> dict[int, str]:
    """The full name of an entry by the identity of its object; numbers and texts, which Python shares, have none."""
    return {id(value): name for name, value in entries().items() if not isinstance(value, (bool, int, float, str))}


# --- pages ------------------------------------------------------------------------------------------------------------


def expand(app: Sphinx, docname: str, source: list[str]) -> None:
    """Replace the blocks of a page by what Sphinx's autodoc reads (event ``source-read``)."""
    if docname.startswith("api/"):
        source[0] = BLOCK.sub(lambda match: written(match["module"], match["names"].split()), source[0])


def written(module: str, names: list[str]) -> str:
    """The reStructuredText of one block, as MyST takes it."""
    prefix = f"{module}."
    known = entries()
    head = "automodule" if names in ([], ["-"]) else "py:currentmodule"
    if not names:
        names = [name for name in public(importlib.import_module(module)) if prefix + name in known]
    lines = [f".. {head}:: {module}", ""]
    if names != ["-"]:
        lines += [".. list-table::", "   :widths: 30 70", "   :class: api-summary", ""]
        for name in names:
            lines += [f"   * - :py:obj:`~{prefix}{name}`", f"     - {summary(module, name, known[prefix + name])}"]
        for name in names:
            lines += ["", *entry(module, name, known[prefix + name])]
    return "\n".join(["```{eval-rst}", *lines, "```"])


def summary(module: str, name: str, value: Any) -> str:
    """The first sentence on an entry."""
    if is_constant(value):
        said = " ".join(constant(module, name)[1:])
    else:
        paragraph = (inspect.getdoc(value) or "").partition("\n\n")[0]
        owner = sys.modules[value.__module__]
        said = ROLE.sub(lambda match: written_out(match, owner, f"{module}.{name}"), " ".join(paragraph.split()))
    return re.split(r"(?<=\.) (?=[A-Z])", said.strip())[0]


def is_constant(value: Any) -> bool:
    """Whether something is neither a function nor a class."""
    return is_type_name(value) or not (inspect.isfunction(value) or inspect.isclass(value))


def is_type_name(value: Any) -> bool:
    """Whether something is a short name of a longer type."""
    return isinstance(value, (GenericAlias, UnionType)) or getattr(value, "__module__", "") == "typing"


def entry(module: str, name: str, value: Any) -> list[str]:
    """The reStructuredText of one entry."""
    full = f"{module}.{name}"
    if is_constant(value):
        kind = "type" if is_type_name(value) else "data"
        return [f".. py:{kind}:: {name}", "", *(f"   {line}" for line in constant(module, name))]
    if inspect.isclass(value):
        kind = "autoexception" if issubclass(value, BaseException) else "autoclass"
        return [f".. {kind}:: {full}", "   :members:", "   :member-order: bysource"]
    return [f".. autofunction:: {full}"]


def constant(module: str, name: str) -> list[str]:
    """What the source says of a constant or a type's short name: its value, and the comment above or beside it."""
    lines, node = assignment(module, name)
    above = node.lineno - 1
    while above and lines[above - 1].startswith("#"):
        above -= 1
    said = [line.removeprefix("#").strip() for line in lines[above : node.lineno - 1]]
    beside = lines[(node.end_lineno or node.lineno) - 1].partition("  # ")[2]
    value = ast.unparse(node.value) if node.value else ""
    shown = [f"``{value}``"] if len(value) <= LONGEST_VALUE else []
    return [*shown, "", *said, beside]


def assignment(module: str, name: str) -> tuple[list[str], ast.Assign | ast.AnnAssign]:
    """The lines of the module that gives a name its value, and the statement that does."""
    source = inspect.getsource(importlib.import_module(module))
    for node in ast.parse(source).body:
        if isinstance(node, ast.ImportFrom) and name in [alias.name for alias in node.names]:
            if (node.module or "").startswith(LIBRARY):
                return assignment(node.module or "", name)
        if isinstance(node, (ast.Assign, ast.AnnAssign)):
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            if ast.unparse(target) == name:
                return source.splitlines(), node
    raise LookupError(f"{module} gives no value to {name}")


# --- docstrings -------------------------------------------------------------------------------------------------------


def resolve_roles(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Give roles the full names of what they mean, and add the chapters (event ``autodoc-process-docstring``)."""
    module = obj if inspect.ismodule(obj) else sys.modules.get(getattr(obj, "__module__", ""))
    lines[:] = literal([ROLE.sub(lambda match: written_out(match, module, name), line) for line in lines])
    chapters = [chapter for chapter in used_in().get(name, ()) if chapter in app.env.found_docs]
    if chapters:
        links = ", ".join(f":doc:`{int(chapter[:2])} </{chapter}>`" for chapter in chapters)
        lines += ["", f"*In the book: chapter{'s' if len(chapters) > 1 else ''}* {links}", ""]


def written_out(match: re.Match[str], module: ModuleType | None, owner: str) -> str:
    """A role with the full name of the entry that it means, or as code where there is no entry."""
    found = meaning(match["target"], module, owner)
    if found is None:
        return match[0]
    return f":{match['role']}:`{match['target']} <{found}>`" if found else f"``{match['target']}``"


def literal(lines: list[str]) -> list[str]:
    """Docstrings indent examples, or begin them with ``python -m`` or ``torchrun``, without colons: add Sphinx's."""
    made: list[str] = []
    inside = section = False
    before = ""
    for line in lines:
        if line and not line.startswith(" "):
            section = line.rstrip().endswith(":") and line[0].isupper() and " " not in line.strip()
            inside = False
        command = line.startswith(("python -m ", "torchrun "))
        if not section and not inside and not before and (line.startswith("    ") or command):
            inside = True
            if not line.strip().startswith("====") and not (made and closing(made).endswith("::")):
                made += ["::", ""]
        made.append(f"    {line}" if command else line)
        before = line
    return made


def closing(lines: list[str]) -> str:
    """The last line that is not empty."""
    return next((line for line in reversed(lines) if line), "")


def meaning(target: str, module: ModuleType | None, owner: str) -> str | None:
    """The entry that a role in a docstring means.

    Args:
        target: what the role names.
        module: where the docstring stands.
        owner: full name of what the docstring describes; methods may name each other.

    Returns:
        The full name; ``""`` for something without an entry; ``None`` for nothing that there is.
    """
    path = target.split(".")
    absolute = next((n for n in range(len(path), 0, -1) if ".".join(path[:n]) in sys.modules), 0)
    scopes: list[tuple[Any, list[str]]] = [(module, path), (entries().get(owner), path)]
    scopes += [
        (entries().get(owner.rpartition(".")[0]), path),
        (sys.modules.get(".".join(path[:absolute])), path[absolute:]),
    ]
    for scope, rest in scopes:
        value, above = scope, None
        for part in rest:
            above, value = value, getattr(value, part, None)
            if value is None:
                break
        if value is None or scope is None:
            continue
        if id(value) in name_of():
            return name_of()[id(value)]
        if id(above) in name_of() and inspect.isclass(above):
            return f"{name_of()[id(above)]}.{rest[-1]}"
        full = f"{getattr(above, '__name__', '')}.{rest[-1]}" if rest else ""
        return full if full in entries() else ""
    return None


def signature(app: Sphinx, what: str, name: str, obj: Any, options: Any, *given: str | None) -> tuple[str, str] | None:
    """The signature as the source has it: short names of types stay short (event ``autodoc-process-signature``)."""
    if what not in ("function", "method", "class", "exception"):
        return None
    try:
        found = inspect.signature(obj)
    except (TypeError, ValueError):
        return None
    module = sys.modules[obj.__module__]
    parameters = [one.replace(annotation=linked(one.annotation, module)) for one in found.parameters.values()]
    if what == "method" and parameters and parameters[0].name in ("self", "cls"):
        parameters = parameters[1:]
    result = linked(found.return_annotation, module) if what in ("function", "method") else found.empty
    return stringify_signature(found.replace(parameters=parameters, return_annotation=result)), ""


def linked(annotation: Any, module: ModuleType) -> Any:
    """An annotation whose names lead to their entries; ``~`` tells Sphinx to show the last part alone.

    A short name of the library's own that has no entry is replaced by what it stands for.
    """

    def full(match: re.Match[str]) -> str:
        value: Any = module
        for part in match[0].split("."):
            value = getattr(value, part, None)
        known = name_of().get(id(value))
        if known:
            return f"~{known}"
        if is_type_name(value):
            try:
                return ast.unparse(assignment(module.__name__, match[0])[1].value or ast.Constant(None))
            except LookupError:  # what Python brings
                pass
        return match[0]

    if not isinstance(annotation, str):
        return annotation
    return re.sub(r"[A-Za-z_][\w.]*", full, annotation)


def type_name(app: Sphinx, env: BuildEnvironment, node: pending_xref, shown: nodes.TextElement) -> Any:
    """The link of a short name of a type, which Sphinx looks for among classes alone (event ``missing-reference``)."""
    if node.get("refdomain") != "py" or node["reftarget"] not in entries():
        return None
    python = env.get_domain("py")
    return python.resolve_xref(env, node["refdoc"], app.builder, "obj", node["reftarget"], node, shown)


# --- chapters ---------------------------------------------------------------------------------------------------------


@cache
def used_in() -> dict[str, list[str]]:
    """``{full name: chapters whose code uses it}``, in reading order."""
    found: dict[str, list[str]] = {}
    for path in sorted((BOOK / "src").glob("[0-9]*.md")):
        for name in sorted({name_of().get(id(value), "") for value in used(path.read_text("utf-8"))} - {""}):
            found.setdefault(name, []).append(path.stem)
    return found


def used(chapter: str) -> Iterator[Any]:
    """What of the library the code of a chapter uses.

    Args:
        chapter: its Markdown.
    """
    imported: dict[str, Any] = {}
    for match in CODE.finditer(chapter):
        code = re.sub(r"\A\n(---\n.*?^---$|(:.*\n)+)", "", match["code"], flags=re.MULTILINE | re.DOTALL)
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    if alias.name == LIBRARY:
                        imported[alias.asname or alias.name] = importlib.import_module(LIBRARY)
            elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith(LIBRARY):
                for alias in node.names:
                    module = importlib.import_module(node.module or "")
                    imported[alias.asname or alias.name] = value = getattr(module, alias.name)
                    yield value
            elif isinstance(node, ast.Attribute):
                first, *path = ast.unparse(node).split(".")
                value = imported.get(first)
                for part in path:
                    value = getattr(value, part, None)
                yield value


def setup(app: Sphinx) -> dict[str, Any]:
    """Connect the above to Sphinx."""
    for extension in ("sphinx.ext.autodoc", "sphinx.ext.napoleon"):
        app.setup_extension(extension)
    app.connect("source-read", expand)
    app.connect("autodoc-process-docstring", resolve_roles, priority=100)  # before napoleon takes the sections apart
    app.connect("autodoc-process-signature", signature)
    app.connect("missing-reference", type_name)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
