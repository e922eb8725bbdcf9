"""Tables from whole-set runs."""

import json

import pytest

from smoothsal_lib.report import Results, load, main, markdown, reduction, text


def row(fix: str, method: str, layer: str, mean: float, state: str = "trained", **more: float) -> dict:
    found = {"state": state, "fix": fix, "method": method, "layer": layer, "measure": "total_variation"}
    return {**found, "mean": mean, "std": 0.5, "n": 4, **more}


ROWS = [
    row("none", "gradient", "layer1", 2.0),
    row("none", "gradient", "layer2", 1.0),
    row("backward", "gradient", "layer1", 1.5, change=-0.5, change_error=0.1),
    row("backward", "gradient", "layer2", 0.25, change=-0.75, change_error=0.1),
    row("none", "deeplift", "layer1", 3.0),
    row("none", "gradient", "layer1", 9.0, state="fc"),
]
RECORD = {"command": "python -m smoothsal_lib evaluate --out x.json", "images": 4, "data": "four pictures"}
RESULTS = Results([RECORD], ROWS)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "x.json"
    path.write_text(json.dumps({**RECORD, "rows": ROWS}))
    return path


def test_load_and_source(file):
    assert load(file) == RESULTS
    assert len(load(file, file).rows) == 2 * len(ROWS)
    assert RESULTS.source == "4 images of four pictures:\n  python -m smoothsal_lib evaluate --out x.json"
    long = Results([{**RECORD, "command": "python " + "--some-option " * 10}], ROWS).source.split("\n")
    assert len(long) == 3 and max(map(len, long)) <= 78 and long[2].startswith("      --some-option")


def test_tables():
    gradient = RESULTS.table("total_variation", "gradient")
    assert gradient == {"none": {"layer1": 2.0, "layer2": 1.0}, "backward": {"layer1": 1.5, "layer2": 0.25}}
    change = RESULTS.table("total_variation", "gradient", value="change")
    assert change == {"backward": {"layer1": -0.5, "layer2": -0.75}}
    methods = RESULTS.table("total_variation", columns="method", fix="none")
    assert methods == {"gradient": {"layer1": 2.0, "layer2": 1.0}, "deeplift": {"layer1": 3.0}}
    states = RESULTS.table("total_variation", "gradient", columns="state", fix="none", layer="layer1")
    assert states == {"trained": {"layer1": 2.0}, "fc": {"layer1": 9.0}}
    chosen = RESULTS.table("total_variation", "gradient", fix=["backward", "none"], layer=["layer2"])
    assert list(chosen) == ["backward", "none"] and chosen["none"] == {"layer2": 1.0}


def test_an_experiment_has_axes_of_its_own():
    rows = [
        {"repair": "none", "cutoff": None, "seed": 0, "layer": "layer1", "measure": "auc", "mean": 0.5, "error": 0.1},
        {"repair": "none", "cutoff": 0.25, "seed": 0, "layer": "layer1", "measure": "auc", "mean": 0.25, "error": 0.1},
        {"repair": "hook", "cutoff": None, "seed": 0, "layer": "layer1", "measure": "auc", "mean": 1.0, "gain": 0.5},
    ]
    results = Results([RECORD], rows)
    assert results.axes == ["repair", "cutoff", "seed", "layer", "measure"]
    assert results.table("auc", columns="repair", cutoff=None) == {"none": {"layer1": 0.5}, "hook": {"layer1": 1.0}}
    assert results.table("auc", columns="cutoff", repair="none", value="error") == {
        "None": {"layer1": 0.1},
        "0.25": {"layer1": 0.1},
    }
    named = [{**row, "case": f"case {i}"} for i, row in enumerate(rows)]
    assert list(Results([RECORD], named).table("auc", columns="case")) == ["case 0", "case 1", "case 2"]
    assert results.table("auc", columns="repair", cutoff=None, value="gain") == {"hook": {"layer1": 0.5}}
    with pytest.raises(ValueError, match=r"^several values of cutoff \(None, 0.25\): choose one, or make it an axis$"):
        results.table("auc", columns="repair")
    with pytest.raises(ValueError, match=r"^no number 'std' here: choose out of mean, error, gain$"):
        results.table("auc", columns="repair", value="std")


def test_reduction():
    assert reduction(RESULTS.table("total_variation", "gradient")) == {"backward": {"layer1": 0.25, "layer2": 0.75}}
    assert reduction({"none": {"a": 0.0, "b": 2.0}, "fix": {"a": 0.0, "b": 1.0}}) == {"fix": {"b": 0.5}}


def test_text_and_markdown():
    table = RESULTS.table("total_variation", columns="method", fix="none")
    assert text(table, 1).splitlines() == [
        "        gradient  deeplift",
        "layer1       2.0       3.0",
        "layer2       1.0         -",
    ]
    assert markdown(table, 1).splitlines()[-1] == "| layer2 | 1.0 | - |"
    assert text({"a": {"x": -0.001}}).split() == ["a", "x", "0.00"]
    assert text({"a b": {"x": 0.5}}, 1, percent=True).splitlines()[1].split() == ["x", "50.0%"]


def test_what_is_not_there():
    with pytest.raises(ValueError, match=r"^no measure 'auc' here: choose out of total_variation$"):
        RESULTS.table("auc")
    with pytest.raises(ValueError, match=r"^several values of method \(gradient, deeplift\): choose one"):
        RESULTS.table("total_variation")
    with pytest.raises(ValueError, match="^no axis 'colour' here"):
        RESULTS.table("total_variation", colour="red")
    with pytest.raises(ValueError, match="^no change for "):
        RESULTS.table("total_variation", "deeplift", value="change")
    with pytest.raises(ValueError, match="^no column 'plain' here"):
        reduction({"none": {}}, without="plain")
    with pytest.raises(ValueError, match="empty table"):
        text({})
    with pytest.raises(
        FileNotFoundError, match=r"^no results 'nothing': python -m smoothsal_lib evaluate --out nothing"
    ):
        load("nothing")


def test_a_file_of_something_else(tmp_path):
    (tmp_path / "y.json").write_text("[1]")
    with pytest.raises(ValueError, match="holds no rows: it was not written by python -m smoothsal_lib evaluate$"):
        load(tmp_path / "y.json")


def test_command_line(file, tmp_path, capsys):
    main([str(file), "--out", str(tmp_path / "out"), "--digits", "1"])
    printed = capsys.readouterr().out
    assert "### total_variation · gradient\n\n|  | none | backward |" in printed
    assert "| layer2 | 1.0 | 0.2 |" in printed
    assert (tmp_path / "out" / "tables.md").read_text() == printed
    assert sorted(path.name for path in (tmp_path / "out").glob("*.png")) == [
        "total_variation-deeplift.png",
        "total_variation-gradient-fc.png",
        "total_variation-gradient.png",
    ]
