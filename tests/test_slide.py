"""A slide explained in tiles: equal to the map made whole, resumed after a kill, written as QuPath reads it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from networks import Block, build
from slide_files import asap, damage, glass, noise, serving, truncate, write
from torch import Tensor, nn

pytest.importorskip("tiffslide", reason="the extra slides is not installed")
pytest.importorskip("fsspec", reason="the extra slides is not installed")

import tifffile
from PIL import Image

import smoothsal_lib.__main__ as command_line
from smoothsal_lib import slide as slide_module
from smoothsal_lib.camelyon import CamelyonResNet18
from smoothsal_lib.datasets import slides
from smoothsal_lib.datasets.patches import GLASS
from smoothsal_lib.datasets.slides import Slide, load_annotations, open_slide, tile_grid
from smoothsal_lib.models import DenseResNet, TinyResNet, normalize
from smoothsal_lib.slide import HEATMAP, PICTURE, SUMMARY, Mosaic, SlidePlan, explain_slide, probe

TARGET = 2


def plan(**changes: object) -> SlidePlan:
    """For networks of which twice the reach, and what the blurs add, is below 24 pixels."""
    given = {"layer": "stem.2", "target": TARGET, "mpp": None, "tile": 96, "overlap": 48, "rim": 24, "mask": 0}
    return SlidePlan(**{**given, **changes})  # type: ignore[arg-type]


def seeded(make: type[nn.Module], *arguments: object) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make(*arguments).eval()


class SmallResNet(nn.Module):
    """Two strides of 2 and a classifier; a unit of the last map sees 7 pixels to all sides."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1, bias=False), nn.BatchNorm2d(4), nn.ReLU(inplace=True))
        self.block, self.head = Block(4, 6, 2), nn.Linear(6, 5)
        for tensor in (*self.parameters(), *self.buffers()):
            if tensor.is_floating_point() and tensor.ndim == 1:
                tensor.data.uniform_(0.5, 1.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(self.stem(x)).mean((2, 3)))


def network(name: str) -> nn.Module:
    return seeded(SmallResNet).double() if name == "resnet" else build(name)


def pictures(slide: Slide, size: tuple[int, int], places: list[tuple[float, float]]) -> Tensor:
    return normalize(torch.stack([slide.read(x, y, size) for x, y in places]).double() / 255)


def in_tiles(slide: Slide, model: nn.Module, wanted: SlidePlan, answer: bool = False) -> Tensor:
    """The map of the whole slide, put together of tiles, in float64."""
    stride = probe(model, wanted).stride
    grid = tile_grid(slide, wanted.tile, wanted.overlap, wanted.mpp, stride=stride)
    view = probe(model, wanted, grid.size)
    layer = view.answer if answer else view.layer
    mosaic = Mosaic(grid, layer.shape[1:], layer.stride, layer.offset, wanted.rim_pixels)
    x = pictures(slide, grid.size, [(tile.x, tile.y) for tile in grid.tiles])
    maps = torch.cat([view.maps(model, part, wanted)[answer] for part in x.split(4)]).numpy()
    values, covered = mosaic.block(lambda index: maps[index], 0, 0, *mosaic.shape)
    assert covered.all()
    return torch.from_numpy(values)


def whole(slide: Slide, model: nn.Module, wanted: SlidePlan, answer: bool = False) -> Tensor:
    """The map of the whole slide, made in one go."""
    shape = tile_grid(slide, wanted.tile, wanted.overlap, wanted.mpp, stride=probe(model, wanted).stride).shape
    view = probe(model, wanted, shape)
    return view.maps(model, pictures(slide, shape, [(0, 0)]), wanted)[answer][0]


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """150 x 199 pixels, no multiples of any stride: 3 x 4 tiles."""
    return write(tmp_path_factory.mktemp("slides") / "large.tif", noise(150, 199))


CASES = [
    ("resnet", {"method": "gradient", "fix": "none", "layer": "stem.2"}),
    ("resnet", {"method": "gradient", "fix": "backward", "layer": "stem.2"}),
    ("resnet", {"method": "gradient", "fix": "forward", "layer": "stem.2"}),
    ("resnet", {"method": "deeplift", "fix": "backward", "layer": "block"}),
    ("resnet", {"method": "deeplift", "fix": "none", "layer": "block", "baseline": "mean"}),
    ("resnet", {"method": "gradient", "fix": "backward", "layer": "input", "reduce": "l2"}),
    ("resnet", {"method": "normgrad", "fix": "none", "layer": "stem.2"}),
    ("resnet", {"method": "layer_cam", "fix": "none", "layer": "stem.2"}),
    ("resnet", {"method": "cam", "fix": "none", "layer": "block"}),
    ("overlapping_max_pool", {"method": "gradient", "fix": "none", "layer": "layer2"}),
    ("dilated", {"method": "gradient", "fix": "backward", "layer": "layer1"}),
    ("stride_4", {"method": "gradient", "fix": "backward", "layer": "layer1"}),
]


@pytest.mark.parametrize(
    "name, changes", CASES, ids=lambda case: case if isinstance(case, str) else "-".join(case.values())
)
def test_the_map_of_tiles_is_the_map_of_the_whole(large: Path, name: str, changes: dict[str, str]):
    """Everywhere: what is too near to a tile's edge does not count, and at the slide's edge both see the same."""
    model = network(name)
    with open_slide(large) as slide:
        tiles, one = (make(slide, model, plan(**changes)) for make in (in_tiles, whole))
    rows, columns = (min(a, b) for a, b in zip(tiles.shape, one.shape, strict=True))
    assert tiles.shape == one.shape or name == "dilated"  # without padding the outermost unit may be missing
    error = (tiles - one)[:rows, :columns].abs().max()
    assert error <= 1e-10 * one.abs().max() and one.abs().max() > 0


@pytest.mark.parametrize("name", ["resnet", "dilated"])
def test_probabilities_of_tiles_are_those_of_the_whole(large: Path, name: str):
    model, wanted = network(name), plan(layer="input")
    with open_slide(large) as slide:
        tiles, one = (make(slide, model, wanted, True) for make in (in_tiles, whole))
        x = pictures(slide, (152, 200), [(0, 0)])
    rows, columns = one.shape
    torch.testing.assert_close(tiles[:rows, :columns], one, atol=1e-12, rtol=1e-10)
    view = probe(model, wanted, (152, 200))
    assert view.detector.layer and view.detector.weight is not None and view.detector.bias is not None
    torch.testing.assert_close(view.detector.weight, model.head.weight.data)
    torch.testing.assert_close(view.detector.bias, model.head.bias.data)
    features = model.block(model.stem(x)) if name == "resnet" else model[:-3](x)
    local = torch.einsum("kc,nchw->nkhw", model.head.weight, features) + model.head.bias[:, None, None]
    torch.testing.assert_close(local.mean((2, 3)), model(x))
    torch.testing.assert_close(one, local.softmax(1)[0, TARGET].detach())


class Dense(nn.Module):
    """Logits for every position of a map that is half as large as the picture, or a quarter."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stem, self.last = nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 4, 3, stride, 1)
        self.head = nn.Conv2d(4, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.last(self.stem(x).relu()).relu())


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("answer", [False, True])
def test_dense_networks_are_put_together_the_same_way(large: Path, stride: int, answer: bool):
    model, wanted = seeded(Dense, stride).double(), plan(layer="stem")
    with open_slide(large) as slide:
        tiles, one = (make(slide, model, wanted, answer) for make in (in_tiles, whole))
    height = 150 if stride == 1 else 152  # a multiple of the network's stride
    assert tiles.shape == ((height // (2 * stride), 200 // (2 * stride)) if answer else (height // 2, 100))
    torch.testing.assert_close(tiles, one, atol=1e-10 * float(one.abs().max()), rtol=0)


def test_a_dense_networks_score_is_the_sum_of_its_logits(large: Path):
    model, wanted = seeded(DenseResNet, 4, (4, 4, 6, 6)).double(), plan(layer="input", method="gradient", fix="none")
    view = probe(model, wanted)
    assert view.stride == 8 and view.answer.shape[1:] == (96, 96) and view.answer.stride == (1, 1)
    assert view.answer.offset == (0.0, 0.0) and view.positions == 96 * 96
    with open_slide(large) as slide:
        x = pictures(slide, (96, 96), [(0, 0)])
    saliency, probability = view.maps(model, x, wanted)
    (gradient,) = torch.autograd.grad(model(x.requires_grad_())[:, TARGET].sum(), x)
    torch.testing.assert_close(saliency, gradient.mean(1))
    torch.testing.assert_close(probability, model(x).softmax(1)[:, TARGET].detach())


def test_without_rim_or_positions_the_map_depends_on_the_tiles(large: Path):
    """What the other tests would miss, if they could not fail."""
    model = network("resnet")
    with open_slide(large) as slide:
        one = whole(slide, model, plan())
        seam = in_tiles(slide, model, plan(overlap=0, rim=None))
    assert (seam - one).abs().max() > 0.02 * one.abs().max()
    assert probe(model, plan()).positions == 24 * 24 and probe(model, plan(tile=128)).positions == 32 * 32


def test_squeeze_and_excitation_is_not_exact_as_the_docstring_says(large: Path):
    with open_slide(large) as slide:
        wanted = plan(layer="layer1", fix="none")
        tiles, one = (make(slide, build("squeeze_excite"), wanted) for make in (in_tiles, whole))
    assert (tiles - one).abs().max() > 1e-6 * one.abs().max()


@pytest.mark.parametrize("rim, ramp", [(0, 8), (8, 4), (15, 0), (16, 0)])
def test_weights_add_up_to_one_and_seams_have_no_jump(large: Path, rim: int, ramp: int):
    with open_slide(large) as slide:
        grid = tile_grid(slide, 96, 32, stride=4)
    mosaic = Mosaic(grid, (24, 24), (4, 4), (0.0, 0.0), rim)
    assert mosaic.starts == ([0, 14], [0, 16, 26]) and mosaic.shape == (38, 50)
    cut = (8 - ramp) // 2
    rising = [0.0] * cut + [(i + 0.5) / ramp for i in range(ramp)] + [1.0] * (24 - cut - ramp)
    assert np.allclose(mosaic.weights(1, 0), rising[::-1], atol=1e-40)
    assert np.allclose(mosaic.weights(1, 26), rising, atol=1e-40)
    assert np.allclose(mosaic.weights(1, 16), np.array(rising) * rising[::-1])
    assert np.allclose(mosaic.weights(1, 0)[16:] + mosaic.weights(1, 16)[:8], 1)
    values, covered = mosaic.block(lambda index: np.full((24, 24), float(grid.tiles[index].column)), 0, 0, 38, 50)
    assert covered.all() and values[0, 0] == 0 and values[0, -1] == 104
    steps = np.diff(values[0])[:24]  # from the first tile to the second
    assert steps.sum() == pytest.approx(64) and steps.max() == pytest.approx(64 / max(ramp, 1))


def test_any_block_is_a_part_of_the_whole(large: Path):
    with open_slide(large) as slide:
        grid = tile_grid(slide, 64, 16, stride=8)
    mosaic = Mosaic(grid, (16, 16), (4, 4), (0.0, 0.0), 4)
    maps = np.random.default_rng(0).normal(size=(len(grid.tiles), 16, 16))

    def tiles(index: int) -> np.ndarray | None:
        return None if index == 5 else maps[index]

    alone, _ = mosaic.block(lambda index: maps[5] if index == 5 else None, 0, 0, *mosaic.shape)
    row, column = grid.tiles[5].row // 4, grid.tiles[5].column // 4
    assert np.allclose(alone[row : row + 16, column : column + 16], maps[5])  # rims count where nothing else does
    assert np.count_nonzero(alone) == 256
    values, covered = mosaic.block(tiles, 0, 0, *mosaic.shape)
    assert mosaic.shape == (38, 50) and not covered.all() and (values[~covered] == 0).all()
    for top, left, height, width in ((0, 0, 5, 5), (10, 11, 13, 20), (30, 40, 8, 10), (20, 26, 1, 1)):
        part, seen = mosaic.block(tiles, top, left, height, width)
        assert np.array_equal(part, values[top : top + height, left : left + width])
        assert np.array_equal(seen, covered[top : top + height, left : left + width])


@pytest.fixture
def tissue(tmp_path: Path) -> Path:
    """A slide of 400 x 500 pixels at 0.5 micrometres with tissue in rows 100 to 299 and columns 50 to 399."""
    picture = glass(400, 500)
    picture[100:300, 50:400] = noise(200, 350) // 4 + np.array([150, 60, 130], np.uint8)
    return write(tmp_path / "tissue.tif", picture)


def detector(classes: int = 1) -> nn.Module:
    return seeded(TinyResNet, classes, (4, 4, 6, 8))


SMALL = {"tile": 128, "overlap": 32, "batch": 3, "mpp": 0.5, "mask": 100}


def test_a_run_writes_heatmap_overview_and_summary(tissue: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out, model = tmp_path / "out", detector()
    outlines = load_annotations(asap(tmp_path / "a.xml", [("Polygon", "Tumor", [(100, 120), (200, 120), (150, 280)])]))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with open_slide(tissue) as slide:
        summary = explain_slide(slide, model.train(), SlidePlan("layer2.1", **SMALL), out, outlines)
    assert model.training and all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert sorted(one.name for one in out.iterdir()) == sorted([HEATMAP, PICTURE, SUMMARY])
    assert json.loads((out / SUMMARY).read_text()) == json.loads(json.dumps(summary))
    assert capsys.readouterr() == ("", "")
    # 400 x 500 pixels make 25 x 32 steps of 16, 100 x 128 units of 4.
    assert summary["heatmap"] == (3, 100, 128) and summary["heatmap_mpp"] == 2.0 and summary["pixels_of_level_0"] == 4
    assert summary["offset_micrometres"] == [-0.75, -0.75] and summary["skipped"] == []
    assert summary["explained"] == summary["tiles"] < 20 and summary["positions"] == 64
    with tifffile.TiffFile(out / HEATMAP) as file:
        assert file.is_ome and [level.shape for level in file.series[0].levels] == [(3, 100, 128)]
        saliency, probability, coverage = file.asarray()
        described = tifffile.xml2dict(file.ome_metadata)["OME"]["Image"]["Pixels"]
        across, unit = (file.pages[0].tags[name].value for name in ("XResolution", "ResolutionUnit"))
        assert across[0] / across[1] == pytest.approx(5000) and unit.name == "CENTIMETER"
    assert [channel["Name"] for channel in described["Channel"]] == ["saliency", "probability", "coverage"]
    assert described["PhysicalSizeX"] == 2.0 and described["PhysicalSizeXUnit"] == "µm"
    assert set(np.unique(coverage)) == {0, 1} and coverage[25:75, 13:100].all() and not coverage[:, -20:].all()
    assert (saliency[coverage == 0] == 0).all() and (saliency[25:75, 13:100] != 0).mean() > 0.9
    assert 0 < probability[coverage == 1].min() and probability.max() < 1
    with Image.open(out / PICTURE) as drawn:
        assert min(drawn.size) > 300


def test_the_heatmap_holds_what_explain_gives(tissue: Path, tmp_path: Path):
    model = detector()
    with open_slide(tissue) as slide:
        explain_slide(slide, model, SlidePlan("layer2.1", **{**SMALL, "tile": 512, "overlap": 0}), tmp_path / "one")
        x = normalize(slide.read(0, 0, (400, 512))[None].float() / 255)
    saliency, probability, _ = tifffile.imread(tmp_path / "one" / HEATMAP)
    from smoothsal_lib import explain, saliency_map

    expected = saliency_map(explain(model, x, 0, "layer2.1", "deeplift", "backward", GLASS)["layer2.1"])[0] * (25 * 32)
    torch.testing.assert_close(torch.from_numpy(saliency), expected, rtol=1e-4, atol=1e-7)
    features = nn.Sequential(*list(model.children())[:-2])(x)
    local = torch.einsum("kc,nchw->nkhw", model.fc.weight, features)[0, 0] + model.fc.bias
    # Unit i of layer 2 stands at pixel 4 i, unit j of layer 4 at pixel 16 j; halves go to the even one.
    at = np.rint(np.arange(100) / 4).astype(int).clip(max=24), np.rint(np.arange(128) / 4).astype(int).clip(max=31)
    torch.testing.assert_close(
        torch.from_numpy(probability), local.sigmoid().detach()[np.ix_(*at)], rtol=1e-4, atol=1e-5
    )


def test_a_coarser_look_is_laid_on_the_same_slide(tissue: Path, tmp_path: Path):
    with open_slide(tissue) as slide:
        summary = explain_slide(slide, detector(), SlidePlan("layer2.1", **{**SMALL, "mpp": 0.8, "tile": 64}), tmp_path)
    assert summary["heatmap"] == (3, 64, 80) and summary["heatmap_mpp"] == pytest.approx(3.2)  # 250 x 312.5 pixels
    coverage = tifffile.imread(tmp_path / HEATMAP)[2]
    assert coverage[16:46, 8:62].all() and not coverage[:, 76:].any()  # 3.2 micrometres are 6.4 pixels of level 0


def test_damaged_tiles_are_reported_and_skipped(tissue: Path, tmp_path: Path):
    damage(tissue, 8 * 3 + 2)  # rows 192 to 255, columns 128 to 191
    wanted = SlidePlan("layer2.1", **SMALL)
    with serving(tissue.parent) as server:
        results = {}
        for name, where in (("disk", tissue), ("http", server.url("tissue.tif"))):
            with open_slide(where) as slide:
                results[name] = explain_slide(slide, detector(), wanted, tmp_path / name)
    skipped = results["disk"]["skipped"]
    assert 0 < len(skipped) and results["disk"]["explained"] == results["disk"]["tiles"] - len(skipped) > 0
    for one in skipped:
        assert one["x"] < 192 and one["x"] + 128 > 128 and one["y"] < 256 and one["y"] + 128 > 192
        assert "cannot decode 'tissue.tif'" in one["reason"]
    coverage = tifffile.imread(tmp_path / "disk" / HEATMAP)[2]
    assert not coverage[50:62, 34:46].any() and coverage[30:70, 60:90].any()
    assert results["http"] == results["disk"]
    assert (tmp_path / "http" / HEATMAP).read_bytes() == (tmp_path / "disk" / HEATMAP).read_bytes()


def test_a_truncated_slide_is_explained_as_far_as_it_goes(tmp_path: Path):
    path = write(tmp_path / "cut.tif", noise(400, 500), levels=1, compression="jpeg")
    truncate(path, 8 * 4 + 3)
    with open_slide(path) as slide:
        summary = explain_slide(slide, detector(), SlidePlan("layer2.1", **SMALL), tmp_path / "out")
        assert 0 < summary["explained"] < summary["tiles"] and "the file at" in summary["skipped"][0]["reason"]
        assert min(one["y"] for one in summary["skipped"]) + 128 > 256
    truncate(path, 0)
    with (
        open_slide(path) as slide,
        pytest.raises(ValueError, match=r"none of 20 tiles of 'cut.tif' can be read: tile 0"),
    ):
        explain_slide(slide, detector(), SlidePlan("layer2.1", **SMALL), tmp_path / "none")


CHILD = """
    import os, signal, sys
    from pathlib import Path
    import torch
    from smoothsal_lib.datasets.slides import open_slide
    from smoothsal_lib.ledger import Ledger
    from smoothsal_lib.models import TinyResNet
    from smoothsal_lib.slide import SlidePlan, explain_slide

    path, out, when = sys.argv[1:]
    add = Ledger.add

    def fatal(self, key, values):
        if key == "2" and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        add(self, key, values)
        if key == "2" and when == "after":
            os.kill(os.getpid(), signal.SIGKILL)

    Ledger.add = fatal
    torch.manual_seed(0)
    model = TinyResNet(1, (4, 4, 6, 8)).eval()
    with open_slide(path) as slide:
        explain_slide(slide, model, SlidePlan("layer2.1", tile=128, overlap=32, batch=3, mpp=0.5, mask=100), Path(out))
"""


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(tissue: Path, tmp_path: Path, when: str):
    """Killed between the maps of a batch and its line in the ledger, or right after that line."""
    wanted, out = SlidePlan("layer2.1", **SMALL), tmp_path / "killed"
    command = [sys.executable, "-c", textwrap.dedent(CHILD), str(tissue), str(out), when]
    # Sums are rounded as the number of threads has it, and the bytes are to be the same.
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    killed = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **threads})
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    lines = (out / "tiles.partial.jsonl").read_text().splitlines()
    assert len(lines) == 1 + (2 if when == "before" else 3) and not (out / HEATMAP).exists()
    read: list[tuple[float, float]] = []
    with open_slide(tissue) as slide:
        with pytest.raises(ValueError, match="was begun with layer = 'layer2.1', not 'layer1.1': finish it as it was"):
            explain_slide(slide, detector(), SlidePlan("layer1.1", **SMALL), out)
        with pytest.raises(ValueError, match="was begun with weights"):
            explain_slide(slide, seeded(TinyResNet, 1, (4, 4, 6, 10)), wanted, out)
        explain_slide(slide, detector(), wanted, tmp_path / "whole")
        read_tile = slide.read

        def counted(x: float, y: float, *arguments: object, **options: object) -> Tensor:
            read.append((x, y))
            return read_tile(x, y, *arguments, **options)  # type: ignore[arg-type]

        slide.read = counted  # type: ignore[method-assign]
        summary = explain_slide(slide, detector(), wanted, out)
    assert len(read) == summary["tiles"] - 3 * (len(lines) - 1) > 0
    for name in (HEATMAP, PICTURE, SUMMARY):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert sorted(one.name for one in out.iterdir()) == sorted([HEATMAP, PICTURE, SUMMARY])


def test_a_run_that_lost_its_server_goes_on(tissue: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(slides, "PAUSE", 0.01)
    monkeypatch.setattr(slides, "REMOTE_BLOCK", 2**12)
    monkeypatch.setattr(slides, "REMOTE_BLOCKS", 4)
    wanted, out = SlidePlan("layer2.1", **SMALL), tmp_path / "out"
    with serving(tissue.parent) as server:
        with open_slide(server.url("tissue.tif", "late")) as slide:
            mask = slides.tissue_mask(slide, wanted.mask)
            monkeypatch.setattr(slide_module, "tissue_mask", lambda slide, longest: mask)
            server.patience = len(server.ranges) + 30
            with pytest.raises(ConnectionError, match="the server of 'tissue.tif' failed 3 times"):
                explain_slide(slide, detector(), wanted, out)
            begun = len((out / "tiles.partial.jsonl").read_text().splitlines())
            assert begun > 1 and not (out / HEATMAP).exists()
            server.patience = 10**9
            explain_slide(slide, detector(), wanted, out)
    with open_slide(tissue) as slide:
        explain_slide(slide, detector(), wanted, tmp_path / "disk")
    assert (out / HEATMAP).read_bytes() == (tmp_path / "disk" / HEATMAP).read_bytes()


def test_left_over_tiles_without_a_ledger_are_not_used(tissue: Path, tmp_path: Path):
    wanted = SlidePlan("layer2.1", **SMALL)
    (tmp_path / "saliency.partial").write_bytes(b"\x01" * 100)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "saliency.partial").write_bytes(b"\x01" * 100)
    with open_slide(tissue) as slide:
        explain_slide(slide, detector(), wanted, tmp_path / "out")
        explain_slide(slide, detector(), wanted, tmp_path / "clean")
    assert (tmp_path / "out" / HEATMAP).read_bytes() == (tmp_path / "clean" / HEATMAP).read_bytes()


def test_killed_while_tidying_up(tissue: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A ledger that outlived the maps would make the next run believe in maps that are gone."""

    def killed(self: slide_module._Store) -> None:
        raise KeyboardInterrupt

    wanted, out = SlidePlan("layer2.1", **SMALL), tmp_path / "out"
    with open_slide(tissue) as slide:
        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
            patched.setattr(slide_module._Store, "remove", killed)
            explain_slide(slide, detector(), wanted, out)
        before = (out / HEATMAP).read_bytes()
        for left in out.glob("*.partial"):
            left.write_bytes(b"")
        explain_slide(slide, detector(), wanted, out)
    assert (out / HEATMAP).read_bytes() == before
    assert sorted(one.name for one in out.iterdir()) == sorted([HEATMAP, PICTURE, SUMMARY])


def test_bad_wishes_are_answered_in_one_line(tissue: Path, tmp_path: Path):
    for changes, message in (
        ({"method": "grad_cam"}, "grad_cam has no local values, so its tiles do not fit together: use cam or gradient"),
        ({"method": "gradients"}, "unknown method 'gradients': did you mean 'gradient'"),
        ({"baseline": "grey"}, "unknown baseline 'grey': choose glass or mean"),
        ({"fix": "sideways"}, "unknown fix 'sideways': choose none, backward"),
        ({"reduce": "median"}, "unknown reduction 'median'"),
        ({"rim": 129}, "rim = 129 is not between 0 and half of the overlap of 256 pixels"),
        ({"batch": 0}, "batch = 0 and mask = 1024: expected at least 1 tile"),
    ):
        with pytest.raises(ValueError, match=message) as caught:
            SlidePlan("layer2.1", **changes)  # type: ignore[arg-type]
        assert "\n" not in str(caught.value)
    oblong = nn.Sequential(nn.Conv2d(3, 4, 3, (2, 1), 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 1)).eval()
    with open_slide(tissue) as slide:
        for model, changes, message in (
            (detector(3), {}, "this TinyResNet has 3 classes: say which one to explain"),
            (detector(3), {"target": 3}, "no class 3: this network has classes 0 to 2"),
            (detector(), {"layer": "layer9"}, "no hidden layer 'layer9' to map: choose one of input, relu"),
            (detector(), {"tile": 100}, "size = 100 is not a multiple of the network's stride of 16"),
            (detector(), {"overlap": 40}, "overlap = 40 is not a multiple"),
            (detector(), {"mpp": 0.1}, "has 0.5 micrometres a pixel at best"),
            (detector(), {"fix": "surrogate"}, "fix 'surrogate' and no surrogate do not go together"),
            (nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(0)), {}, r"expected logits \(N, classes\) or"),
            (oblong, {"layer": "0"}, "the layer has different strides down and right, 2 and 1: no square pixels"),
        ):
            with pytest.raises(ValueError, match=message):
                explain_slide(slide, model, SlidePlan(**{"layer": "layer2.1", **SMALL, **changes}), tmp_path / "x")
    assert not (tmp_path / "x").exists()
    with open_slide(write(tmp_path / "glass.tif", glass(200, 200))) as slide:
        with pytest.raises(ValueError, match="no tissue on 'glass.tif': a mask of 0 pixels takes all tiles"):
            explain_slide(slide, detector(), SlidePlan("layer2.1", **SMALL), tmp_path / "x")


def test_networks_without_local_logits_have_one_probability_a_tile(tissue: Path):
    class Two(nn.Module):
        """A hidden layer in the classifier."""

        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3, 2, 1)
            self.head = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.conv(x).relu().mean((2, 3)))

    model = seeded(Two)
    view = probe(model, SlidePlan("conv", tile=64))
    assert view.detector.layer is None and not view.detector.dense and view.answer.shape[1:] == (32, 32)
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    probability = view.maps(model, x, SlidePlan("conv", tile=64))[1]
    assert probability.shape == (2, 32, 32)
    torch.testing.assert_close(probability[:, 0, 0], model(x).sigmoid()[:, 0].detach())


def test_the_command_explains_a_slide(
    tissue: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    damage(tissue, 8 * 3 + 2)
    outlines = asap(tmp_path / "a.xml", [("Polygon", "Tumor", [(100, 120), (200, 120), (150, 280)])])
    monkeypatch.setattr(slide_module, "load_model", lambda name: {"tissue_resnet": detector()}[name])
    words = "--layer layer2.1 --mpp 0.5 --tile 128 --overlap 32 --batch 3 --mask 100 --device cpu".split()
    words += ["--slide-mpp", "0.5", "--annotations", str(outlines)]
    out = tmp_path / "out"
    arguments = ["slide", str(tissue), *words, "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["smoothsal_lib", *arguments])
    command_line.main()
    printed, bar = capsys.readouterr()
    assert "tiles explained" in printed and "skipped tile " in printed and "tiles:" in bar
    summary = json.loads((out / SUMMARY).read_text())
    assert summary["command"] == (
        "python -m smoothsal_lib slide tissue.tif --model tissue_resnet --layer layer2.1 --method deeplift "
        "--baseline glass --fix backward --reduce mean --mpp 0.5 --tile 128 --overlap 32 --batch 3 --mask 100 "
        "--slide-mpp 0.5 --annotations a.xml"
    )
    assert {"torch", "tiffslide", "tifffile"} <= set(summary["versions"]) and (out / HEATMAP).is_file()


def test_the_papers_detector_answers_window_by_window(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """It looks through windows of 224 pixels, refuses smaller pictures, and has no answers near a tile's edge."""
    weights, out = tmp_path / "model.pt", tmp_path / "out"
    model = seeded(CamelyonResNet18)
    torch.save(model.state_dict(), weights)
    x = torch.randn(1, 3, 448, 448, generator=torch.Generator().manual_seed(0))
    wanted = SlidePlan("layer4.1", method="gradient", fix="none", tile=448, overlap=224)
    view = probe(model, wanted)
    assert view.detector.layer is not None and view.answer.shape[1:] == (8, 8) and view.answer.stride == (32, 32)
    local = view.maps(model, x, wanted)[1].logit()
    torch.testing.assert_close(local.mean((1, 2)), model(x)[:, 0].detach(), atol=1e-4, rtol=1e-4)
    slide = write(tmp_path / "slide.tif", noise(448, 672), mpp=0.25)
    words = (
        f"--weights {weights} --layer layer4.1 --method gradient --fix none --mpp 0.25 --mask 0 --device cpu".split()
    )
    words += ["--device", "cpu", "--tile", "448", "--out", str(out), "--overlap"]
    arguments = ["smoothsal_lib", "slide", str(slide), *words]
    monkeypatch.setattr(sys, "argv", [*arguments, "96"])
    with pytest.raises(SystemExit, match="overlap = 96 leaves gaps between the answers .*: give at least 192 pixels$"):
        command_line.main()
    monkeypatch.setattr(sys, "argv", [*arguments, "224"])
    command_line.main()
    summary = json.loads((out / SUMMARY).read_text())
    assert summary["explained"] == 2 and summary["local_probability"] and "--weights model.pt" in summary["command"]
    heat = tifffile.imread(out / HEATMAP)
    assert (heat[2] == 1).all() and (heat[1] > 0).all() and np.abs(heat[0]).max() > 0
    monkeypatch.setattr(sys, "argv", [*arguments, "224", "--fix", "surrogate"])
    with pytest.raises(SystemExit, match="no surrogate of other weights ships with the library: give --surrogate$"):
        command_line.main()


def test_the_command_tells_mistakes_in_one_line(tissue: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(slide_module, "load_model", lambda name: detector())
    for words, message in (
        ([str(tmp_path / "missing.tif")], "no slide"),
        ([str(tissue), "--annotations", str(tmp_path / "b.xml")], "no annotations"),
        ([str(tissue), "--tile", "100"], "size = 100 is not a multiple"),
        (["http://127.0.0.1:9/x.tif"], "cannot be reached"),
    ):
        options = ["--layer", "layer2.1", "--out", str(tmp_path / "out"), "--device", "cpu"]
        monkeypatch.setattr(sys, "argv", ["smoothsal_lib", "slide", *words, *options])
        with pytest.raises(SystemExit, match=f"^python -m smoothsal_lib slide: .*{message}") as caught:
            command_line.main()
        assert "\n" not in str(caught.value)
