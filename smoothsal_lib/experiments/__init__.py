"""Questions that the paper leaves open, each a command that writes its numbers to ``data/results``."""
