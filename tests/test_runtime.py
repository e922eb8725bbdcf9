"""What a chapter's first cell prints and chooses, on machines of several kinds."""

from __future__ import annotations

import json
import os
from types import SimpleNamespace

import IPython
import pytest
import torch
from IPython.core.interactiveshell import InteractiveShell

import smoothsal_lib as sal
from smoothsal_lib import runtime

ROW = {"chapter": "01-gridded", "device": "CPU", "seconds": 12.3, "words": 4800, "minutes_to_read": 40}


@pytest.fixture(autouse=True)
def machine(monkeypatch, tmp_path):
    """A machine with three cores, no GPU and no wish of its own, on which one chapter was measured; no notebook."""
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "chapter_times.json").write_text(json.dumps({"cores": 2, "rows": [ROW]}))
    monkeypatch.setattr(runtime, "data_folder", lambda: tmp_path)
    monkeypatch.setattr(runtime, "cores", lambda: 3)
    monkeypatch.setattr(runtime, "_ASKED", None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(IPython, "get_ipython", lambda: None)
    monkeypatch.setenv("SMOOTHSAL_MODEL", "")
    return monkeypatch


@pytest.fixture
def shell(machine):
    """A notebook's shell."""
    shell = InteractiveShell()
    machine.setattr(IPython, "get_ipython", lambda: shell)
    return shell


def said(capsys) -> list[str]:
    return capsys.readouterr().out.splitlines()


def test_without_a_gpu_a_note_says_that_none_is_needed_and_how_long_it_takes(capsys):
    runtime.start("01-gridded", "tiny_resnet")
    first, second, third = said(capsys)
    assert first.startswith("No GPU, three CPU cores. smoothsal_lib ")
    assert f"torch {torch.__version__}, torchvision " in first and "Python 3." in first
    assert second == (
        "That is enough: everything here runs on the CPU."
        " Expect 40 minutes to read, 12 seconds to run on two CPU cores."
    )
    assert third == "Network: tiny_resnet."


def test_a_gpu_is_named_with_its_memory(machine, capsys):
    machine.setattr(torch.cuda, "is_available", lambda: True)
    gpu = SimpleNamespace(name="Tesla T4", total_memory=15 * 2**30)
    machine.setattr(torch.cuda, "get_device_properties", lambda index: gpu)
    runtime.start("01-gridded", "tiny_resnet")
    first, second, _ = said(capsys)
    assert first.startswith("GPU: Tesla T4, 15 GiB. ")
    assert '.to("cuda")' in second and "12 seconds" in second


def test_chapter_that_was_not_measured_states_no_time(capsys):
    runtime.start("99-new", "tiny_resnet")
    assert said(capsys)[1] == "That is enough: everything here runs on the CPU."


def test_library_without_a_record_states_no_time(machine, tmp_path, capsys):
    machine.setattr(runtime, "data_folder", lambda: tmp_path / "elsewhere")
    runtime.start("01-gridded")
    assert "Expect" not in capsys.readouterr().out


def test_choice_is_the_network_that_load_model_gives_and_may_change(capsys):
    for name in ("tissue_resnet", "glas_resnet"):
        runtime.start("01-gridded", name)
        assert os.environ["SMOOTHSAL_MODEL"] == name
        assert f"Network: {name}, " in capsys.readouterr().out
        torch.testing.assert_close(sal.load_model().state_dict(), sal.load_model(name).state_dict())


def test_environment_goes_before_the_choice_in_the_notebook(machine, capsys):
    machine.setattr(runtime, "_ASKED", "resnet34")
    runtime.start("01-gridded", "resnet18")
    assert os.environ["SMOOTHSAL_MODEL"] == "resnet34"
    assert "Network: resnet34" in capsys.readouterr().out


def test_chapter_with_networks_of_its_own_says_so_and_chooses_none(capsys):
    runtime.start("01-gridded")
    assert "names its networks itself" in said(capsys)[2]
    assert os.environ["SMOOTHSAL_MODEL"] == ""


CELL = "for i in (1, 2):\n    assert i > 1, 'too small'\nprint('end')"


def test_claims_about_the_network_of_the_text_stop_the_chapter(shell, capsys):
    runtime.start("01-gridded", "tiny_resnet")
    with pytest.raises(AssertionError):
        shell.run_cell(CELL).raise_error()
    assert said(capsys)[-1] != "end"


def test_claims_that_do_not_hold_for_another_network_are_printed(shell, capsys):
    runtime.start("01-gridded", "resnet34")
    said(capsys)
    shell.run_cell(CELL).raise_error()
    assert said(capsys) == ["not so for resnet34: i > 1", "end"]


def test_an_error_in_a_claim_is_no_answer(shell):
    runtime.start("01-gridded", "resnet34")
    with pytest.raises(ZeroDivisionError):
        shell.run_cell("assert 1 / 0 > 1").raise_error()


def test_back_to_the_network_of_the_text_claims_stop_the_chapter_again(shell):
    for name in ("resnet18", "resnet34", "tiny_resnet"):
        runtime.start("01-gridded", name)
        assert len(shell.ast_transformers) == (name != "tiny_resnet")
    with pytest.raises(AssertionError):
        shell.run_cell(CELL).raise_error()


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0.2, "1 second"), (1.6, "2 seconds"), (89.4, "89 seconds"), (90, "2 minutes"), (3600, "60 minutes")],
)
def test_durations_are_said_as_one_says_them(seconds, shown):
    assert runtime.duration(seconds) == shown


@pytest.mark.parametrize(("cores", "shown"), [(1, "one CPU core"), (2, "two CPU cores"), (64, "64 CPU cores")])
def test_cores_are_counted_in_words(cores, shown):
    assert runtime.counted(cores) == shown


def test_cores_are_those_that_the_process_may_use(machine):
    machine.undo()
    assert 1 <= runtime.cores() <= (os.cpu_count() or 1)
