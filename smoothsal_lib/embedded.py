"""Where the files lie that ship with the library: weights, model cards and recorded results."""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).parent


def data_folder() -> Path:
    """The folder ``data/``: of the repository in a checkout, ``smoothsal_lib/data`` in an installed wheel.

    Raises:
        FileNotFoundError: when neither is there.
    """
    checkout = PACKAGE.parent
    candidates = [PACKAGE / "data"]
    if (checkout / "pyproject.toml").is_file():  # a folder "data" beside an installed package would be somebody else's
        candidates.append(checkout / "data")
    for folder in candidates:
        if folder.is_dir():
            return folder
    raise FileNotFoundError(f"the library's data folder is missing: looked for {' and '.join(map(str, candidates))}")
