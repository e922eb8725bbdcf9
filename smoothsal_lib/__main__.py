"""``python -m smoothsal_lib evaluate``, ``... report`` and ``... slide``."""

import importlib
import sys

from smoothsal_lib.parallel import first_to_fail

COMMANDS = ("evaluate", "report", "slide")  # modules, of which only the one that is asked for is imported


def main() -> None:
    """Hand the rest of the command line to the command it names."""
    name, *rest = sys.argv[1:] or [""]
    if name not in COMMANDS:
        sys.exit(
            f"usage: python -m smoothsal_lib {{{','.join(COMMANDS)}}} ...   (--help after a command lists its options)"
        )
    try:
        importlib.import_module(f"smoothsal_lib.{name}").main(rest)
    except (ValueError, FileNotFoundError, ConnectionError, MemoryError, ModuleNotFoundError) as error:
        sys.exit(f"python -m smoothsal_lib {name}: {error}" if first_to_fail() else 1)


if __name__ == "__main__":
    main()
