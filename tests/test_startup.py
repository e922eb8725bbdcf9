"""Starting is quick because nothing is imported that is not needed yet: what is, is counted, not timed."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

import smoothsal_lib as sal

# Packages that are slow to import, or that not everyone has.
HEAVY = set(
    "IPython captum fsspec h5py imagecodecs ipywidgets matplotlib pandas requests scipy skimage tiffslide timm "
    "tqdm.notebook zennit".split()
)
LATER = ("evaluate", "exercises", "experiments", "nuclei", "plot", "report", "slide", "widgets")


PROGRAM = """
import json, sys
import torch, torchvision
stages = [sorted(sys.modules)]
import smoothsal_lib as sal
assert set(sal.__all__) <= set(dir(sal))
stages.append(sorted(sys.modules))
maps = sal.explain(sal.load_model("tiny_resnet"), torch.randn(1, 3, 32, 32), method="gradient")
sal.total_variation(sal.saliency_map(maps["layer2.1"])[:, None])
stages.append(sorted(sys.modules))
from smoothsal_lib import *
assert set(sal.__all__) <= set(globals())
stages.append(sorted(sys.modules))
print(json.dumps(stages))
"""


@pytest.fixture(scope="module")
def brought() -> dict[str, set[str]]:
    """What one new interpreter has imported after each stage, beyond what torch and torchvision bring."""
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    before, *stages = (set(names) for names in json.loads(done.stdout))
    names = ("the import", "a map", "all names")
    return {name: modules - before for name, modules in zip(names, stages, strict=True)}


@pytest.mark.parametrize("stage", ["the import", "a map"])
def test_nothing_heavy_is_imported(stage: str, brought: dict[str, set[str]]) -> None:
    assert HEAVY & brought[stage] == set()
    assert "smoothsal_lib.explain" in brought[stage]
    for part in LATER:
        assert f"smoothsal_lib.{part}" not in brought[stage], part


def test_what_is_imported_late_is_there_all_the_same(brought: dict[str, set[str]]) -> None:
    assert {"matplotlib", "smoothsal_lib.plot", "smoothsal_lib.widgets"} <= brought["all names"]
    with pytest.raises(AttributeError, match="no attribute 'explian'"):
        sal.explian  # noqa: B018


def test_the_command_line_says_its_usage_before_it_imports_a_command() -> None:
    script = (
        "import runpy, sys, torch, torchvision\n"
        "before, sys.argv = set(sys.modules), ['smoothsal_lib', '--help']\n"
        "try: runpy.run_module('smoothsal_lib', run_name='__main__')\n"
        "except SystemExit as end: assert 'usage: ' in str(end)\n"
        "print(*(set(sys.modules) - before))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    brought = set(done.stdout.split())
    assert HEAVY & brought == {name for name in LATER if f"smoothsal_lib.{name}" in brought} == set()
