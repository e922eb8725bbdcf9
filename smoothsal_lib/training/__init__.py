"""Command-line scripts that make the weights in ``data/``. Not imported by the rest of the library."""
