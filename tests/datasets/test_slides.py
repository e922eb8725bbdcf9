"""Whole slides: small ones made here, whole and damaged, from disk and from a server on this machine."""

from __future__ import annotations

import http.client
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import slide_files
import torch
from slide_files import asap, damage, glass, noise, serving, truncate, write

pytest.importorskip("tiffslide", reason="the extra slides is not installed")
pytest.importorskip("fsspec", reason="the extra slides is not installed")

import tifffile
from skimage.draw import polygon2mask

from smoothsal_lib.datasets import slides
from smoothsal_lib.datasets.slides import (
    DamagedTileError,
    TissueMask,
    annotation_mask,
    load_annotations,
    open_slide,
    overview,
    patches,
    tile_grid,
    tissue_mask,
    write_pyramid,
)


@pytest.fixture
def picture() -> np.ndarray:
    return noise(300, 400)


@pytest.fixture
def path(tmp_path: Path, picture: np.ndarray) -> Path:
    return write(tmp_path / "slide.tif", picture)


def on_glass(height: int = 512, width: int = 640) -> np.ndarray:
    """Glass with a piece of tissue in rows 128 to 383 and columns 192 to 447."""
    found = glass(height, width)
    found[128:384, 192:448] = noise(256, 256) // 4 + np.array([150, 60, 130], np.uint8)
    return found


def test_a_slide_tells_its_levels_and_resolution(path: Path):
    with open_slide(path) as slide:
        assert slide.name == "slide.tif" and slide.dimensions == (400, 300)
        assert slide.levels == ((400, 300), (200, 150), (100, 75)) and slide.downsamples == (1, 2, 4)
        assert slide.mpp == pytest.approx(0.5)
        assert slide.scale(2.0) == 4 and slide.scale(None) == 1 and slide.scale(1.25) == pytest.approx(2.5)


def test_reading_a_level_gives_its_pixels(path: Path, picture: np.ndarray):
    with open_slide(str(path)) as slide:
        found = slide.read(37, 11, (50, 70))
        assert found.shape == (3, 50, 70) and found.dtype == torch.uint8
        assert np.array_equal(found.permute(1, 2, 0), picture[11:61, 37:107])
        assert np.array_equal(slide.read(40, 100, 30, level=2).permute(1, 2, 0), picture[100:220:4, 40:160:4])
        assert np.array_equal(slide.read(40, 100, 30, mpp=2.0).permute(1, 2, 0), picture[100:220:4, 40:160:4])


def test_outside_of_the_slide_there_is_white(path: Path, picture: np.ndarray):
    with open_slide(path) as slide:
        found = slide.read(-10, 290, (20, 30)).permute(1, 2, 0).numpy()
        assert np.array_equal(found[:10, 10:], picture[290:, :20])
        assert (found[10:] == 255).all() and (found[:, :10] == 255).all()
        assert (slide.read(1000, 0, 8) == 255).all()


def test_a_resolution_between_levels_is_the_finer_one_reduced(tmp_path: Path):
    rows, columns = np.mgrid[0:200, 0:200]
    ramp = np.stack([rows, columns, (rows + columns) // 2], 2).astype(np.uint8)
    with open_slide(write(tmp_path / "ramp.tif", ramp, 0.5, levels=2)) as slide:
        found = slide.read(30, 60, 40, mpp=0.75).numpy()  # 1.5 pixels of level 0
        centres = (np.arange(40) + 0.5) * 1.5 - 0.5  # a triangle keeps a ramp
        assert np.abs(found[1] - (30 + centres)[None, :]).max() <= 0.50001
        assert np.abs(found[0] - (60 + centres)[:, None]).max() <= 0.50001


@pytest.mark.parametrize("mpp", [0.62, 0.5, 1.0, 1.7])
def test_neighbouring_rectangles_fit_together(path: Path, mpp: float):
    with open_slide(path) as slide:
        scale = slide.scale(mpp)
        whole = slide.read(0, 0, 64, mpp=mpp)
        for row, column in ((0, 24), (16, 8), (32, 40)):
            part = slide.read(column * scale, row * scale, 24, mpp=mpp)
            assert torch.equal(part, whole[:, row : row + 24, column : column + 24])


def test_sizes_that_are_no_multiples_keep_their_downsampling(tmp_path: Path):
    with open_slide(write(tmp_path / "odd.tif", noise(301, 403), levels=3)) as slide:
        assert slide.levels[1:] == ((202, 151), (101, 76)) and slide.downsamples == (1, 2, 4)


def test_a_slide_without_resolution_is_read_by_level(tmp_path: Path, picture: np.ndarray):
    path = write(tmp_path / "none.tif", picture, mpp=None)
    with open_slide(path) as slide:
        assert slide.mpp is None and slide.read(0, 0, 8, level=1).shape == (3, 8, 8)
        with pytest.raises(
            ValueError, match=r"'none.tif' does not say its micrometres a pixel: give them to open_slide"
        ):
            slide.read(0, 0, 8, mpp=0.5)
    with open_slide(path, mpp=0.25) as slide:
        assert slide.scale(0.5) == 2


def test_bad_requests_are_answered_in_one_line(path: Path):
    with open_slide(path) as slide:
        for arguments, message in (
            ({"level": 3}, "no level 3 in 'slide.tif': it has levels 0 to 2"),
            ({"level": -1}, "no level -1"),
            ({"level": 1, "mpp": 1.0}, "give a level or a resolution, not both"),
            ({"mpp": 0.1}, "has 0.5 micrometres a pixel at best: 0.1 is finer"),
            ({"mpp": float("nan")}, "mpp = nan is not a positive number"),
            ({"mpp": -1.0}, "mpp = -1.0 is not"),
            ({"size": 0}, "expected a size of at least 1 pixel a side, got 0"),
            ({"x": float("nan")}, r"expected a corner \(x, y\) in pixels of level 0, got \(nan, 0\)"),
        ):
            with pytest.raises(ValueError, match=message) as caught:
                slide.read(**{"x": 0, "y": 0, "size": 8, **arguments})
            assert "\n" not in str(caught.value)


def test_what_is_no_slide_is_refused(tmp_path: Path, picture: np.ndarray):
    with pytest.raises(FileNotFoundError, match="no slide .*missing.tif': give a TIFF or SVS file"):
        open_slide(tmp_path / "missing.tif")
    with pytest.raises(FileNotFoundError, match="no slide"):
        open_slide(tmp_path)
    text = tmp_path / "text.tif"
    text.write_text("no picture")
    with pytest.raises(ValueError, match="text.tif' is no slide: not a TIFF file"):
        open_slide(text)
    tifffile.imwrite(tmp_path / "grey.tif", picture[..., 0])
    with pytest.raises(ValueError, match="grey.tif' holds 1 channels of uint8: expected 8-bit RGB"):
        open_slide(tmp_path / "grey.tif")
    tifffile.imwrite(tmp_path / "deep.tif", picture.astype(np.uint16), photometric="rgb")
    with pytest.raises(ValueError, match="holds 3 channels of uint16"):
        open_slide(tmp_path / "deep.tif")
    options = {"photometric": "rgb", "resolution": (20000, 10000), "resolutionunit": "CENTIMETER"}
    tifffile.imwrite(tmp_path / "oblong.tif", picture, **options)
    with pytest.raises(ValueError, match="pixels of 0.5 x 1 micrometres: expected square ones, or give mpp"):
        open_slide(tmp_path / "oblong.tif")
    with open_slide(tmp_path / "oblong.tif", mpp=0.5) as slide:
        assert slide.mpp == 0.5
    with pytest.raises(ValueError, match="mpp = 0 is not a positive number"):
        open_slide(tmp_path / "oblong.tif", mpp=0)


@pytest.mark.parametrize("missing", ["tiffslide", "fsspec"])
def test_without_the_extra_one_line_says_what_to_install(path: Path, missing: str):
    message = rf'^{missing} is missing: pip install "smoothsal-lib\[slides\]"$'
    with mock.patch.dict(sys.modules, {missing: None}), pytest.raises(ModuleNotFoundError, match=message):
        open_slide(path)


@pytest.mark.parametrize("compression", ["zlib", "lzw", "jpeg"])
@pytest.mark.parametrize("remote", [False, True])
def test_a_damaged_tile_is_told_and_the_rest_is_read(tmp_path: Path, compression: str, remote: bool):
    path = write(tmp_path / "slide.tif", noise(300, 400), compression=compression)
    with open_slide(path) as slide:
        whole = slide.read(64, 64, 64)
    damage(path, 3)  # columns 192 to 255 of the first row of tiles
    with serving(tmp_path) as server, open_slide(server.url("slide.tif") if remote else path) as slide:
        with pytest.raises(DamagedTileError, match="slide.tif"):
            slide.read(200, 10, 8)
        with pytest.raises(DamagedTileError):
            slide.read(150, 10, 80)
        assert torch.equal(slide.read(64, 64, 64), whole)


@pytest.mark.parametrize("compression", ["zlib", "jpeg", "none"])
@pytest.mark.parametrize("remote", [False, True])
def test_a_truncated_file_is_read_as_far_as_it_goes(tmp_path: Path, compression: str, remote: bool):
    path = write(tmp_path / "slide.tif", noise(300, 400), levels=1, compression=compression)
    with open_slide(path) as slide:
        whole = slide.read(0, 0, 128)
    truncate(path, 20)  # of 7 tiles a row: columns 384 to 399 of the third row
    with serving(tmp_path) as server, open_slide(server.url("slide.tif") if remote else path) as slide:
        assert torch.equal(slide.read(0, 0, 128), whole)
        with pytest.raises(DamagedTileError, match=r"tile 20 of level 0 in 'slide.tif' ends at byte \d+, the file at"):
            slide.read(384, 130, 8)
        with pytest.raises(DamagedTileError, match="tile 28"):
            slide.read(0, 260, 8)


def test_damage_that_a_jpeg_decoder_passes_over_is_found_by_its_markers(tmp_path: Path):
    path = write(tmp_path / "slide.tif", noise(128, 128), compression="jpeg")
    good = path.read_bytes()
    offset, count = slide_files.segment(path, 1)
    for where, new in ((offset + count // 2, b"\xff\x02"), (offset + count - 2, b"\0\0"), (offset, b"\0\0")):
        path.write_bytes(good[:where] + new + good[where + 2 :])
        with open_slide(path) as slide:
            with pytest.raises(DamagedTileError, match="tile 1 of level 0 in 'slide.tif' is no complete JPEG picture"):
                slide.read(64, 0, 8)
            assert slide.read(0, 0, 64).shape == (3, 64, 64)


def test_a_file_without_its_directory_is_no_slide(tmp_path: Path, path: Path):
    broken = tmp_path / "broken.tif"
    broken.write_bytes(path.read_bytes()[:6])
    with pytest.raises(ValueError, match="broken.tif' is no slide") as caught:
        open_slide(broken)
    assert "\n" not in str(caught.value)


def test_over_http_only_what_is_asked_for_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(slides, "REMOTE_BLOCK", 2**14)
    picture = np.random.default_rng(0).integers(0, 256, (1024, 1024, 3), dtype=np.uint8)
    path = write(tmp_path / "large.tif", picture, compression="none")
    with serving(tmp_path) as server, open_slide(server.url("large.tif")) as slide:
        assert slide.name == "large.tif" and slide.levels == ((1024, 1024), (512, 512), (256, 256))
        assert np.array_equal(slide.read(500, 600, 64).permute(1, 2, 0), picture[600:664, 500:564])
        assert sum(high - low + 1 for low, high in server.ranges) < path.stat().st_size / 5


def test_servers_that_cannot_are_told_in_one_line(path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(slides, "PAUSE", 0.01)
    monkeypatch.setattr(slides, "REMOTE_BLOCK", 2**12)
    with serving(path.parent) as server:
        with pytest.raises(FileNotFoundError, match="no slide .*missing.tif': the server answers 404 Not Found"):
            open_slide(server.url("missing.tif"))
        with pytest.raises(ConnectionError, match="the server answers 503 Service Unavailable"):
            open_slide(server.url("slide.tif", "broken"))
        with pytest.raises(ValueError, match="knows no range requests: download the slide and give its path"):
            open_slide(server.url("slide.tif", "whole"))
        with open_slide(server.url("slide.tif", "late")) as slide:
            server.patience = len(server.ranges)
            with pytest.raises(ConnectionError, match="the server of 'slide.tif' failed 3 times"):
                slide.read(300, 200, 64)
            server.patience = 10**9
            assert slide.read(300, 200, 64).shape == (3, 64, 64)
        with open_slide(server.url("slide.tif") + "?key=secret") as slide:
            assert slide.name == "slide.tif"
        address = server.url("slide.tif")
    with pytest.raises(ConnectionError, match="cannot be reached"):
        open_slide(address)


def test_a_server_that_fails_while_a_slide_is_opened_is_no_bad_slide(path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(slides, "REMOTE_BLOCK", 2**12)
    with serving(path.parent) as server:
        for patience in (1, 2):  # one range to see that it knows them, others of the slide's head
            server.patience = len(server.ranges) + patience
            with pytest.raises(ConnectionError, match="the server of '.*slide.tif' failed: ") as caught:
                open_slide(server.url("slide.tif", "late"))
            assert "\n" not in str(caught.value)


def test_a_server_that_speaks_no_http_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch):
    def fail(*_: object, **__: object) -> None:
        raise http.client.BadStatusLine("nonsense\r\n")

    monkeypatch.setattr(slides.urllib.request, "urlopen", fail)
    with pytest.raises(ConnectionError, match="^'http://somewhere/slide.tif' cannot be reached: nonsense$"):
        open_slide("http://somewhere/slide.tif")


def test_a_lack_of_memory_is_no_damage(path: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(*_: object) -> None:
        raise MemoryError

    with open_slide(path) as slide:
        monkeypatch.setattr(slide, "_decoded", fail)
        with pytest.raises(MemoryError):
            slide.read(0, 0, 64)


def test_an_overview_is_the_whole_slide_reduced(tmp_path: Path, picture: np.ndarray, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(slides, "BLOCK", 96)
    for levels in (1, 3):
        with open_slide(write(tmp_path / f"{levels}.tif", picture, levels=levels)) as slide:
            seen = overview(slide, 100)
            assert seen.image.shape == (3, 75, 100) and seen.scale == 4 and not seen.damaged.any()
            assert torch.equal(seen.image, slide.read(0, 0, (75, 100), mpp=2.0))
    with open_slide(tmp_path / "1.tif") as slide:
        assert torch.equal(overview(slide, 1000).image, slide.read(0, 0, (300, 400)))
        with pytest.raises(ValueError, match="longest = 0"):
            overview(slide, 0)


def test_an_overview_leaves_out_what_is_damaged_and_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(slides, "SMALLEST_BLOCK", 16)
    path = write(tmp_path / "slide.tif", noise(512, 512), levels=1)
    damage(path, 9)  # rows and columns 64 to 127
    with open_slide(path) as slide:
        seen = overview(slide, 128)
    expected = np.zeros((128, 128), bool)
    expected[16:32, 16:32] = True
    assert (seen.damaged.numpy() >= expected).all() and seen.damaged.sum() <= 24 * 24  # the filter reaches beyond
    assert (seen.image[:, seen.damaged] == 255).all() and (seen.image[:, ~seen.damaged] < 255).any()


def test_tissue_is_found_on_glass(tmp_path: Path):
    picture = on_glass()
    picture[200:204, 250:254] = 255  # a hole too small to be one
    picture[20:24, 20:24] = (200, 20, 20)  # dust
    picture[:, :40] = 0  # a black margin, as of stitching
    with open_slide(write(tmp_path / "slide.tif", picture, compression="jpeg")) as slide:
        mask = tissue_mask(slide, 160)
    expected = np.zeros((128, 160), bool)
    expected[32:96, 48:112] = True
    assert mask.scale == 4 and (mask.values != expected).sum() <= 260  # a pixel along the rim
    assert mask.values[34:94, 50:110].all() and not mask.values[:30].any()
    assert mask.share(192, 128, 448, 384) > 0.98 and mask.share(0, 0, 100, 100) == 0
    assert mask.share(320, 0, 640, 512) == pytest.approx(0.2, abs=0.02)


def test_otsu_invents_no_tissue_on_glass_and_loses_none_of_tissue(tmp_path: Path):
    with open_slide(write(tmp_path / "glass.tif", glass(256, 256))) as slide:
        assert not tissue_mask(slide).values.any()
    with open_slide(write(tmp_path / "even.tif", np.full((256, 256, 3), 240, np.uint8))) as slide:
        assert not tissue_mask(slide).values.any()
    pink = noise(256, 256) // 8 + np.array([200, 90, 160], np.uint8)  # chromas of 0.3 to 0.5, all of it tissue
    with open_slide(write(tmp_path / "pink.tif", pink)) as slide:
        assert tissue_mask(slide).values.all()


def test_what_cannot_be_read_counts_as_tissue(tmp_path: Path):
    path = write(tmp_path / "glass.tif", glass(256, 256), levels=1)
    damage(path, 5)
    with open_slide(path) as slide:
        mask = tissue_mask(slide)
    assert mask.values[64:128, 64:128].all() and not mask.values[:, 192:].any()


def test_tiles_lie_on_multiples_of_the_stride_and_none_leaves_the_slide(path: Path):
    with open_slide(path) as slide:
        grid = tile_grid(slide, 128, 32, stride=16)
        assert grid.size == (128, 128) and grid.shape == (304, 400) and grid.scale == 1 and grid.mpp is None
        assert grid.rows == (0, 96, 176) and grid.columns == (0, 96, 192, 272)
        assert [tile.index for tile in grid.tiles] == list(range(12))
        assert (grid.tiles[5].row, grid.tiles[5].column, grid.tiles[5].x, grid.tiles[5].y) == (96, 96, 96, 96)
        coarse = tile_grid(slide, 64, 0, mpp=0.8, stride=8)
        assert coarse.scale == pytest.approx(1.6) and coarse.shape == (192, 256)  # of 187.5 and 250
        assert coarse.tiles[5].x == pytest.approx(64 * 1.6) and coarse.tiles[5].y == pytest.approx(64 * 1.6)
        small = tile_grid(slide, 512, 128, stride=16)
        assert small.size == (304, 400) and len(small.tiles) == 1


def test_a_tile_is_taken_for_the_tissue_in_its_core(path: Path):
    values = np.zeros((30, 40), bool)
    values[10:12, 11:12] = True  # rows 100 to 119, columns 110 to 119
    with open_slide(path) as slide:
        grid = tile_grid(slide, 128, 32, mask=TissueMask(values, 10.0), stride=16)
        # Columns 96 to 127 belong to two tiles, and to the core of the first up to 112.
        assert [(tile.row, tile.column) for tile in grid.tiles] == [(0, 0), (0, 96), (96, 0), (96, 96)]
        values[:, :] = False
        values[:9, :9] = True
        grid = tile_grid(slide, 128, 32, mask=TissueMask(values, 10.0), stride=16)
        assert [(tile.row, tile.column) for tile in grid.tiles] == [(0, 0)]
        assert [tile.index for tile in grid.tiles] == [0]
        assert not tile_grid(slide, 128, 32, mask=TissueMask(values, 10.0), share=0.9).tiles


def test_bad_grids_are_refused(path: Path):
    with open_slide(path) as slide:
        for arguments, message in (
            ({"size": 100, "stride": 16}, "size = 100 is not a multiple of the network's stride of 16"),
            ({"size": 0}, "size = 0 is not a multiple"),
            ({"size": 64, "overlap": 8, "stride": 16}, "overlap = 8 is not a multiple"),
            ({"size": 64, "overlap": 48, "stride": 16}, "up to half of 64"),
            ({"size": 64, "overlap": -16}, "overlap = -16"),
            ({"size": 64, "share": 1.0}, "share = 1.0 is not at least 0 and below 1"),
        ):
            with pytest.raises(ValueError, match=message):
                tile_grid(slide, **arguments)


SQUARE = [(10, 10), (50, 10), (50, 50), (10, 50)]


def test_outlines_come_by_group_and_in_order(tmp_path: Path):
    outlines = [
        ("Polygon", "Tumor", SQUARE),
        ("Spline", "_2", [(20, 20), (30, 20), (30, 30)]),
        ("Dot", "Tumor", [(1, 1)]),
        ("Polygon", "Tumor", [(0.5, 1.25), (3, 1), (2, 4)]),
    ]
    path = asap(tmp_path / "a.xml", outlines)
    text = path.read_text()
    path.write_text(text.replace('Order="0"', 'Order="9"', 1))
    found = load_annotations(path)
    assert {group: len(polygons) for group, polygons in found.items()} == {"Tumor": 2, "_2": 1}
    assert found["Tumor"][0].tolist() == [[50, 10], [50, 50], [10, 50], [10, 10]]  # the first point is the last now
    assert found["Tumor"][1].tolist() == [[0.5, 1.25], [3, 1], [2, 4]]


def test_bad_annotations_are_told_in_one_line(tmp_path: Path):
    path = asap(tmp_path / "a.xml", [("Polygon", "Tumor", SQUARE)])
    good = path.read_text()
    for old, new, message in (
        ("</Annotations>", "", "a.xml' is no XML file: mismatched tag"),
        (good, "", "is no XML file: no element found"),
        ("ASAP_Annotations>", "kml>", "is no file of ASAP: it begins with <kml>"),
        (' X="50"', "", "<Coordinate> has no attribute X"),
        (' Order="2"', "", "has no attribute Order"),
        (' Type="Polygon"', "", "<Annotation> has no attribute Type"),
        (' PartOfGroup="Tumor" Color="#F4FA58"', "", "has no attribute PartOfGroup"),
        ('Y="10"', 'Y="nan"', "expected numbers as Order, X and Y, got '0', '10', 'nan'"),
        ('Y="10"', 'Y="ten"', "got '0', '10', 'ten'"),
    ):
        assert old in good
        path.write_text(good.replace(old, new))
        with pytest.raises(ValueError, match=message) as caught:
            load_annotations(path)
        assert "\n" not in str(caught.value) and "a.xml" in str(caught.value)
    with pytest.raises(
        ValueError, match=r"annotation 0 \(Annotation 0\) of .*: an outline needs 3 points or more, got 2"
    ):
        load_annotations(asap(path, [("Polygon", "Tumor", SQUARE[:2])]))
    path.write_bytes(b"\xff\xfe\x00binary")
    with pytest.raises(ValueError, match="is no XML file"):
        load_annotations(path)
    with pytest.raises(FileNotFoundError, match="no annotations .*b.xml': give an XML file of ASAP"):
        load_annotations(tmp_path / "b.xml")


def test_a_square_covers_the_pixels_whose_centres_it_holds():
    square = {"Tumor": [np.array(SQUARE, float)]}
    expected = torch.zeros(64, 64, dtype=torch.bool)
    expected[10:50, 10:50] = True
    assert torch.equal(annotation_mask(square, 0, 0, 64), expected)
    assert torch.equal(annotation_mask(square, 8, 4, (20, 30)), expected[4:24, 8:38])
    assert torch.equal(annotation_mask(square, -20, 0, 64)[:, 20:], expected[:, :44])
    # Coarse pixels of 8: centres at 4, 12, 20, ...
    assert torch.equal(annotation_mask(square, 0, 0, 8, scale=8.0), expected[4::8, 4::8])
    assert not annotation_mask(square, 100, 100, 16).any() and not annotation_mask({}, 0, 0, 4).any()


@pytest.mark.parametrize("seed", range(4))
def test_any_polygon_is_that_of_a_test_of_every_pixel(seed: int):
    points = np.random.default_rng(seed).uniform(-20, 80, (12, 2))  # crosses itself, and the border
    points[3] = np.round(points[3])  # a corner on a pixel's centre
    ours = annotation_mask({"Tumor": [points + 0.5]}, 0, 0, 60).numpy()
    theirs = polygon2mask((60, 60), points[:, ::-1])
    assert (ours != theirs).sum() <= 1  # on the very corner they may differ


def test_holes_are_cut_out_and_groups_are_known():
    polygons = {"_0": [np.array(SQUARE, float)], "_2": [np.array([(20, 20), (30, 20), (30, 30), (20, 30)], float)]}
    mask = annotation_mask(polygons, 0, 0, 64)
    assert mask.sum() == 1600 - 100 and not mask[20:30, 20:30].any()
    other = {"nuclei": polygons["_0"]}
    with pytest.raises(ValueError, match="no outline of a group that is known: 'nuclei' are there"):
        annotation_mask(other, 0, 0, 64)
    assert annotation_mask(other, 0, 0, 64, tumour=("nuclei",)).sum() == 1600
    with pytest.raises(ValueError, match="expected a size of at least 1 pixel and a scale above 0, got 0"):
        annotation_mask(polygons, 0, 0, 0)
    with pytest.raises(ValueError, match="got 4 and nan"):
        annotation_mask(polygons, 0, 0, 4, float("nan"))


def test_patches_of_a_slide_are_like_those_of_every_source(tmp_path: Path):
    tumour = np.array([(192, 128), (320, 128), (320, 384), (192, 384)], float)  # the left half of the tissue
    with open_slide(write(tmp_path / "slide.tif", on_glass(), 0.5)) as slide:
        found = patches(slide, {"Tumor": [tumour]}, size=32, mpp=1.0, patient=7)
        assert len(found) == 16 and found.images.shape == (16, 3, 32, 32) and found.mpp == 1.0
        assert found.patients.unique().tolist() == [7] and found.labels.tolist() == [1, 1, 0, 0] * 4
        assert found.masks["tumour"].flatten(1).float().mean(1).tolist() == [1, 1, 0, 0] * 4
        assert found.names[0] == "slide.tif/192/128" and found.names[5] == "slide.tif/256/192"
        assert torch.equal(found.images[5], slide.read(256, 192, 32, mpp=1.0))
        few = patches(slide, {"Tumor": [tumour]}, size=32, mpp=1.0, limit=6, seed=1)
        assert few.labels.sum() == 3 and len(set(few.names)) == 6 and set(few.names) <= set(found.names)
        assert few.names == patches(slide, {"Tumor": [tumour]}, size=32, mpp=1.0, limit=6, seed=1).names
        assert few.names != patches(slide, {"Tumor": [tumour]}, size=32, mpp=1.0, limit=6, seed=2).names
        assert patches(slide, {"Tumor": [tumour]}, size=32, mpp=1.0, limit=14).labels.sum() in (6, 7, 8)
        assert patches(slide, {}, size=32, mpp=1.0).labels.sum() == 0
        with pytest.raises(ValueError, match="limit = 0"):
            patches(slide, {}, limit=0)
        with pytest.raises(ValueError, match=r"no patch of 32 pixels at 1.0 micrometres in 'slide.tif' lies on tissue"):
            patches(slide, {}, size=32, mpp=1.0, mask=TissueMask(np.zeros((4, 5), bool), 128.0))


def test_the_label_is_that_of_the_middle(tmp_path: Path):
    with open_slide(write(tmp_path / "slide.tif", noise(96, 96), 0.5)) as slide:
        for low, high, label in ((-5, 32, 0), (-5, 33, 1), (64, 200, 0), (63, 200, 1)):  # the middle is 32 to 63
            for corners in ((low, -5, high, 200), (-5, low, 200, high)):
                left, top, right, bottom = corners
                edge = {"Tumor": [np.array([(left, top), (right, top), (right, bottom), (left, bottom)], float)]}
                assert patches(slide, edge, size=96, mpp=0.5).labels.tolist() == [label]


def test_damaged_patches_are_left_out_with_a_warning(tmp_path: Path):
    path = write(tmp_path / "slide.tif", noise(256, 256), 0.5, levels=1)
    damage(path, 6)
    with open_slide(path) as slide:
        with pytest.warns(RuntimeWarning, match="left out 1 of 16 patches: cannot decode 'slide.tif'"):
            found = patches(slide, {}, size=64, mpp=0.5)
        assert len(found) == 15 and "slide.tif/128/64" not in found.names
        with pytest.raises(ValueError, match="none of 1 patches can be read"):
            values = np.zeros((4, 4), bool)
            values[1, 2] = True
            patches(slide, {}, size=64, mpp=0.5, mask=TissueMask(values, 64.0))


def test_a_pyramid_is_written_tile_by_tile(tmp_path: Path):
    picture = noise(301, 430)
    asked = []

    def block(top: int, left: int, height: int, width: int) -> np.ndarray:
        asked.append((top, left))
        assert height <= 128 and width <= 128
        return picture[top : top + height, left : left + width].transpose(2, 0, 1)

    path = tmp_path / "made.tif"
    write_pyramid(path, block, (3, 301, 430), mpp=0.62, tile=64)
    assert len(asked) == len(set(asked)) == 3 * 4 and [one.name for one in tmp_path.iterdir()] == ["made.tif"]
    with open_slide(path) as slide:
        assert slide.levels == ((430, 301), (215, 151), (108, 76), (54, 38)) and slide.downsamples == (1, 2, 4, 8)
        assert slide.mpp == pytest.approx(0.62)
        assert np.array_equal(slide.read(0, 0, (301, 430)).permute(1, 2, 0), picture)
        quads = picture[:300, :430].reshape(150, 2, 215, 2, 3).mean((1, 3))
        assert np.array_equal(slide.read(0, 0, (150, 215), level=1).permute(1, 2, 0), np.rint(quads))
    write_pyramid(path, block, (3, 301, 430), compression="jpeg", tile=64)
    with open_slide(path) as slide:
        assert slide.mpp is None
        assert np.abs(slide.read(0, 0, (301, 430)).permute(1, 2, 0).numpy().astype(int) - picture).mean() < 12


def test_maps_become_an_ome_tiff(tmp_path: Path):
    maps = np.random.default_rng(0).normal(size=(2, 150, 200)).astype(np.float32)
    path = tmp_path / "maps.ome.tif"

    def block(top: int, left: int, height: int, width: int) -> np.ndarray:
        return maps[:, top : top + height, left : left + width]

    write_pyramid(path, block, maps.shape, 2.5, ["a", "b"], offset=(-1.5, -2.5), dtype="float32", tile=64)
    with tifffile.TiffFile(path) as file:
        assert file.is_ome and len(file.series) == 1 and file.series[0].axes == "CYX"
        assert [level.shape for level in file.series[0].levels] == [(2, 150, 200), (2, 75, 100), (2, 38, 50)]
        assert len(file.pages) == 2 and file.pages[0].is_tiled and len(file.pages[0].subifds) == 2
        assert np.array_equal(file.asarray(), maps)
        coarse = file.series[0].levels[1].asarray()
        described = tifffile.xml2dict(file.ome_metadata)["OME"]["Image"]["Pixels"]
    assert np.allclose(coarse[:, :75], maps.reshape(2, 75, 2, 100, 2).mean((2, 4)), atol=1e-6)
    assert described["PhysicalSizeX"] == described["PhysicalSizeY"] == 2.5 and described["PhysicalSizeXUnit"] == "µm"
    assert [channel["Name"] for channel in described["Channel"]] == ["a", "b"]
    assert (described["Plane"][0]["PositionY"], described["Plane"][0]["PositionX"]) == (-1.5, -2.5)
    first = path.read_bytes()
    write_pyramid(path, block, maps.shape, 2.5, ["a", "b"], offset=(-1.5, -2.5), dtype="float32", tile=64)
    assert path.read_bytes() == first
    with pytest.raises(ValueError, match="is no slide|holds 2 channels of float32: expected 8-bit RGB"):
        open_slide(path)


def test_bad_pyramids_are_refused(tmp_path: Path):
    for shape, arguments, message in (
        ((1, 8, 8), {}, "1 channels do not fit RGB"),
        ((2, 8, 8), {"channels": ["a"]}, r"2 channels do not fit the names \['a'\]"),
        ((3, 8, 8), {"tile": 100}, "tile = 100 is not a multiple of 16"),
    ):
        with pytest.raises(ValueError, match=message):
            write_pyramid(tmp_path / "x.tif", lambda *place: np.zeros(1), shape, **arguments)
    assert not list(tmp_path.iterdir())


def test_a_failing_block_leaves_nothing_behind(tmp_path: Path):
    def block(top: int, left: int, height: int, width: int) -> np.ndarray:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_pyramid(tmp_path / "x.tif", block, (3, 64, 64))
    assert not list(tmp_path.iterdir())


def test_what_a_kill_left_behind_is_removed_by_the_next_run(tmp_path: Path):
    left = tmp_path / ".x.tif.levels"
    left.mkdir()
    (left / "0").write_bytes(b"\x01" * (3 * 64 * 64))
    write_pyramid(tmp_path / "x.tif", lambda *place: np.zeros((3, *place[2:]), np.uint8), (3, 64, 64))
    assert [one.name for one in tmp_path.iterdir()] == ["x.tif"]
    assert not tifffile.imread(tmp_path / "x.tif").any()


def test_the_helpers_damage_what_they_say(tmp_path: Path):
    path = write(tmp_path / "slide.tif", noise(128, 128))
    before = path.read_bytes()
    offset, count = slide_files.segment(path, 2)
    damage(path, 2)
    changed = [i for i, (a, b) in enumerate(zip(before, path.read_bytes(), strict=True)) if a != b]
    assert offset <= min(changed) and max(changed) < offset + count
