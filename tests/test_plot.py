from __future__ import annotations

from collections.abc import Iterator

import matplotlib as mpl
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from smoothsal_lib import plot
from smoothsal_lib.datasets.photos import load_photo
from smoothsal_lib.layers import HiddenLayer
from smoothsal_lib.metrics.faithfulness import Curves
from smoothsal_lib.metrics.noise import power_spectrum
from smoothsal_lib.nuclei import rank_nuclei

PHOTO = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
LAYER = HiddenLayer("relu", (8, 4, 4), (10, 10), (0.0, 3.0))


@pytest.fixture(autouse=True)
def without_a_window() -> Iterator[None]:
    plt.switch_backend("agg")
    torch.manual_seed(0)
    yield
    plt.close("all")


def panels(figure: Figure) -> list[Axes]:
    """The axes that show a picture, row by row (a colour bar shows none)."""
    return [ax for ax in figure.axes if ax.images]


def shown(ax: Axes) -> np.ndarray:
    return np.asarray(ax.images[0].get_array())


def words(figure: Figure) -> str:
    return " ".join(text.get_text() for text in figure.findobj(mpl.text.Text))


def test_maps_are_shown_pixel_for_pixel_over_the_same_square():
    maps = {"layer1": torch.randn(8, 8), "layer2": torch.randn(1, 4, 4)}
    figure = plot.maps(maps, photo=PHOTO)
    assert [ax.get_title() for ax in panels(figure)] == ["photograph", "layer1", "layer2"]
    assert [shown(ax).shape for ax in panels(figure)] == [(40, 40, 3), (8, 8), (4, 4)]
    assert {tuple(ax.images[0].get_extent()) for ax in panels(figure)} == {(0, 1, 1, 0)}
    assert {ax.images[0].get_interpolation() for ax in panels(figure)} == {"nearest"}
    np.testing.assert_allclose(shown(panels(figure)[1]), maps["layer1"])


def test_signed_maps_are_centred_at_zero_and_unsigned_ones_start_there():
    values = torch.linspace(-1, 3, 64).view(8, 8)
    (signed,) = panels(plot.maps({"m": values}, percentile=100))
    assert signed.images[0].get_clim() == pytest.approx((-3, 3))
    assert signed.images[0].get_cmap().name == plot.SIGNED
    (unsigned,) = panels(plot.maps({"m": values.abs()}, percentile=100))
    assert unsigned.images[0].get_clim() == pytest.approx((0, 3))
    assert unsigned.images[0].get_cmap().name == plot.UNSIGNED
    (forced,) = panels(plot.maps({"m": values.abs()}, percentile=100, signed=True))
    assert forced.images[0].get_clim() == pytest.approx((-3, 3))


def test_maps_of_one_size_share_a_scale_whatever_the_layout():
    small, large = torch.full((4, 4), 2.0), torch.full((4, 4), 6.0)
    other = torch.full((2, 2), 0.5)
    rows = {"none": {"a": small, "b": other}, "fixed": {"a": large, "b": 2 * other}}
    columns = {name: {row: rows[row][name] for row in rows} for name in ("a", "b")}
    for layout in (rows, columns):
        limits = {(shown(ax).shape, ax.images[0].get_clim()[1]) for ax in panels(plot.maps(layout, percentile=100))}
        assert limits == {((4, 4), 6.0), ((2, 2), 1.0)}
    alone = panels(plot.maps(rows, percentile=100, shared_scale=False))
    assert [ax.images[0].get_clim()[1] for ax in alone] == [2.0, 0.5, 6.0, 1.0]


def test_the_limit_is_written_where_scales_differ_and_once_for_a_shared_column():
    rows = {"none": {"a": torch.full((4, 4), 2.0), "b": torch.full((2, 2), 0.5)}} | {
        "fixed": {"a": torch.full((4, 4), 6.0), "b": torch.full((2, 2), 0.25)}
    }
    figure = plot.maps(rows, percentile=100)
    assert [ax.get_xlabel() for ax in panels(figure)] == ["", "", "limit 6", "limit 0.5"]
    assert "one scale for maps of one size" in words(figure)
    one = plot.maps({"a": torch.full((4, 4), 2.0)}, percentile=100)
    assert [ax.get_xlabel() for ax in panels(one)] == [""]
    assert one.axes[-1].get_yticklabels()[-1].get_text() == "2"


def test_clipping_is_done_and_said():
    values = torch.zeros(10, 10)
    values[0, 0] = 1000
    values[1:] = torch.rand(9, 10) * 5
    figure = plot.maps({"m": values}, percentile=90)
    assert panels(figure)[0].images[0].get_clim()[1] == pytest.approx(np.percentile(values.numpy(), 90))
    assert "clipped at the 90th percentile of magnitude" in words(figure)
    assert "clipped" not in words(plot.maps({"m": values}, percentile=100))


def test_a_map_of_zeros_can_be_drawn():
    (panel,) = panels(plot.maps({"m": torch.zeros(4, 4)}))
    assert panel.images[0].get_clim() == (0, 1)


def test_a_mostly_zero_map_keeps_its_peak():
    values = torch.zeros(40, 40)
    values[3, 3] = 2
    (panel,) = panels(plot.maps({"m": values}))  # the 99.5th percentile is 0
    assert panel.images[0].get_clim() == (0, 2)


def test_a_batch_makes_one_row_an_image():
    batch = torch.stack([torch.ones(4, 4), 5 * torch.ones(4, 4)])
    figure = plot.maps({"a": batch, "b": 2 * batch}, photo=[PHOTO, 255 - PHOTO], percentile=100)
    found = panels(figure)
    assert len(found) == 6
    np.testing.assert_array_equal(shown(found[3]), 255 - PHOTO)
    assert [ax.images[0].get_clim()[1] for ax in (found[1], found[2], found[4], found[5])] == [2, 2, 10, 10]


def test_rows_may_lack_a_panel():
    figure = plot.maps([{"a": torch.rand(4, 4)}, {"a": torch.rand(4, 4), "b": torch.rand(4, 4)}])
    assert len(panels(figure)) == 3


def test_zoom_magnifies_the_same_part_everywhere():
    figure = plot.maps({"m": torch.rand(8, 8), "n": torch.rand(4, 4)}, photo=PHOTO, zoom=(0.25, 0.5, 0.75, 0.75))
    for ax in panels(figure):
        assert ax.get_xlim() == (0.25, 0.75) and ax.get_ylim() == (0.75, 0.5)
        box = ax.get_window_extent()
        assert box.height / box.width == pytest.approx(0.5, rel=1e-3)


def test_panels_keep_the_shape_of_the_picture():
    (panel,) = panels(plot.maps({"m": torch.rand(20, 30)}))
    box = panel.get_window_extent()
    assert box.height / box.width == pytest.approx(2 / 3, rel=1e-3)


def test_an_overlay_of_zeros_is_the_grey_photograph_and_strong_colours_cover_it():
    values = torch.zeros(40, 40)
    values[:, 20:] = 1
    (panel,) = panels(plot.overlay(PHOTO, values, alpha=1.0, interpolation="nearest"))
    left, right = shown(panel)[:, :20], shown(panel)[:, 20:]
    np.testing.assert_allclose(left[..., 0], left[..., 2])
    np.testing.assert_allclose(left[..., 0], 0.35 + 0.55 * PHOTO[:, :20].mean(-1) / 255)
    np.testing.assert_allclose(right, np.broadcast_to(mpl.colormaps[plot.OVERLAID](1.0)[:3], right.shape))


def test_an_overlay_lies_in_register():
    values = torch.zeros(4, 4)
    values[1, 2] = -1  # covers rows 10 to 20 and columns 20 to 30 of 40
    values[3, 3] = 1e-9
    figure = plot.overlay(np.full((40, 40, 3), 128, np.uint8), values, percentile=100, interpolation="nearest")
    coloured = np.ptp(shown(panels(figure)[0]), axis=-1) > 0.05
    expected = np.zeros((40, 40), bool)
    expected[10:20, 20:30] = True
    np.testing.assert_array_equal(coloured, expected)
    assert "nearest" in words(figure)


def test_an_overlay_puts_every_unit_where_its_layer_says():
    values = torch.zeros(4, 4)
    values[1, 2] = 1
    grey = np.full((40, 40, 3), 128, np.uint8)
    for layers in (LAYER, {"m": LAYER}):
        figure = plot.overlay(grey, {"m": values}, percentile=100, alpha=1.0, layers=layers)
        away = np.abs(shown(panels(figure)[0]) - np.array(mpl.colormaps[plot.OVERLAID](1.0)[:3])).sum(-1)
        assert np.unravel_index(away.argmin(), away.shape) == (10, 23) and away.min() < 1e-6
        assert "every unit where it stands" in words(figure)
    figure = plot.overlay(grey, {"m": values}, percentile=100, layers=LAYER, interpolation="nearest")
    assert "stretched to the photograph (nearest)" in words(figure)
    assert "stretched to the photograph (bilinear)" in words(plot.overlay(grey, values))


def test_nuclei_are_tinted_by_their_saliency_and_numbered():
    labels = torch.zeros(40, 40, dtype=torch.int32)
    labels[2:12, 20:30], labels[20:30, 4:14], labels[32:38, 32:38] = 1, 2, 7
    saliency = torch.zeros(40, 40)
    saliency[2:12, 20:30], saliency[20:30, 4:14] = 1, 4
    ranked = rank_nuclei(saliency, labels)
    figure = plot.nuclei(PHOTO, labels, ranked, top=2, percentile=100)
    photograph, drawn = panels(figure)
    np.testing.assert_array_equal(shown(photograph), PHOTO)
    grey = 0.35 + 0.55 * PHOTO.mean(-1, keepdims=True) / 255
    for label, share in ((1, 0.25), (2, 1.0), (7, 0.0)):
        tint = np.array(mpl.colormaps[plot.OVERLAID](share)[:3])
        rows, columns = (part.tolist() for part in (labels == label).nonzero().T)
        np.testing.assert_allclose(shown(drawn)[rows[0], columns[0]], tint)  # a corner is outline
        middle = (rows[0] + 3, columns[0] + 3)
        np.testing.assert_allclose(shown(drawn)[middle], 0.4 * tint + 0.6 * grey[middle])
    np.testing.assert_allclose(shown(drawn)[0, 0], np.broadcast_to(grey[0, 0], 3))
    numbers = {text.get_text(): text.get_position() for text in drawn.texts}
    assert numbers == {"1": (9 / 40, 25 / 40), "2": (25 / 40, 7 / 40)}
    assert figure.axes[-1].get_yticklabels()[-1].get_text() == "4"
    assert "first 2" in words(figure) and "mean saliency" in words(figure)


def test_nuclei_may_be_signed_summed_unranked_and_without_numbers():
    labels = torch.zeros(40, 40, dtype=torch.int32)
    labels[2:12, 20:30], labels[20:30, 4:14] = 1, 2
    saliency = torch.full((40, 40), -2.0)
    ranked = rank_nuclei(saliency, labels)
    (_, drawn) = panels(plot.nuclei(PHOTO, labels, ranked[:1], by="sum", top=0, zoom=(0, 0, 0.5, 0.5)))
    np.testing.assert_allclose(shown(drawn)[2, 20], mpl.colormaps[plot.SIGNED](0.0)[:3])
    assert np.ptp(shown(drawn)[20, 4]) == pytest.approx(0)  # the second is not among the ranked
    assert not drawn.texts and drawn.get_xlim() == (0, 0.5)
    figure = plot.nuclei(PHOTO, labels, ranked, by="sum", percentile=100)
    assert figure.axes[-1].get_yticklabels()[-1].get_text() == "200"


def test_nuclei_that_do_not_fit_are_refused():
    labels = torch.ones(40, 40, dtype=torch.int32)
    ranked = rank_nuclei(torch.ones(40, 40), labels)
    with pytest.raises(ValueError, match=r"^expected labels \(40, 40\), as the photograph, got \(20, 40\)$"):
        plot.nuclei(PHOTO, labels[:20], ranked)
    with pytest.raises(ValueError, match="^nothing to draw: got no nuclei$"):
        plot.nuclei(PHOTO, labels, [])
    with pytest.raises(ValueError, match="^the labels have no nucleus 1: expected those"):
        plot.nuclei(PHOTO, 2 * labels, ranked)


def test_spectra_are_relative_to_white_noise_and_symmetric():
    maps = torch.randn(6, 8, 10)
    (panel,) = panels(plot.spectrum({"m": power_spectrum(maps, window=False)}))
    found = shown(panel)
    assert found.shape == (9, 11)  # the Nyquist row and column stand on both sides
    np.testing.assert_allclose(found, found[::-1, ::-1])
    assert found[:8, :10].mean() == pytest.approx(1)


@pytest.mark.parametrize(("stride", "circles"), [(2, 8), (3, 8), (4, 24)])
def test_spectra_are_marked_at_the_multiples_of_one_over_the_stride(stride: int, circles: int):
    (panel,) = panels(plot.spectrum({"m": power_spectrum(torch.randn(12, 12))}, stride=stride))
    points = np.asarray(panel.collections[0].get_offsets())
    assert len(points) == circles
    np.testing.assert_allclose(points * stride, np.round(points * stride))


def test_a_profile_shows_the_horizontal_period():
    stripes = torch.ones(16, 32)
    stripes[:, ::4] = 2
    figure = plot.profile({"stripes": stripes + 0.01 * torch.rand(16, 32), "noise": torch.randn(3, 16, 32)}, mark=0.25)
    (ax,) = figure.axes
    mark, line, noise = ax.lines
    frequency, power = line.get_data()
    assert mark.get_xdata()[0] == 0.25 == frequency[4:][np.argmax(power[4:14])]
    assert frequency[0] == 0 and frequency[-1] == 0.5
    assert np.median(noise.get_ydata()) == pytest.approx(1, abs=0.3)
    assert [label.get_text() for label in ax.get_xticklabels()] == ["0", "1/4", "1/2"]


@pytest.mark.parametrize(("kernel", "stride"), [(3, 2), (1, 2), (2, 2), (3, 3), (3, 1), (5, 2), (7, 4)])
def test_taps_are_counted_as_a_convolution_has_them(kernel: int, stride: int):
    padding = (kernel - 1) // 2
    positions = 12 * stride
    x = torch.zeros(1, 1, positions, positions, requires_grad=True)
    F.conv2d(x, torch.ones(1, 1, kernel, kernel), stride=stride, padding=padding).sum().backward()
    start = 4 * stride  # away from the border, and of parity class (0, 0)
    expected = x.grad[0, 0, start : start + 6, start : start + 6]
    (panel,) = panels(plot.taps([(kernel, stride)]))
    np.testing.assert_array_equal(shown(panel), expected)
    assert [text.get_text() for text in panel.texts] == [str(int(n)) for n in expected.flatten()]


def test_by_layer_draws_numbers_and_spreads():
    values = {"none": {"l1": 2.0, "l2": 1.0}, "fixed": {"l2": 0.5}}
    (ax,) = plot.by_layer(values, ylabel="total variation").axes
    assert [label.get_text() for label in ax.get_xticklabels()] == ["l1", "l2"]
    none, fixed = (container.lines[0].get_xydata().tolist() for container in ax.containers)
    assert none == [[0, 2], [1, 1]] and fixed == [[1, 0.5]]
    assert ax.get_ylabel() == "total variation" and ax.get_ylim()[0] == 0

    spread = {"none": {"l1": torch.tensor([1.0, 3.0])}}
    (ax,) = plot.by_layer(spread, ylabel="total variation").axes
    assert ax.containers[0].lines[0].get_ydata()[0] == 2
    (bars,) = ax.containers[0].lines[2]
    np.testing.assert_allclose(bars.get_segments()[0][:, 1], [2 - 2**0.5, 2 + 2**0.5])
    assert ax.get_ylabel() == "total variation, mean ± std"

    changes = {"none": {"l1": 2.0, "l2": -1.0}}
    (ax,) = plot.by_layer(changes, "change", errors={"none": {"l1": 0.5}}, xlabel="stage").axes
    bars = ax.containers[0].lines[2][0].get_segments()
    np.testing.assert_allclose([bar[:, 1] for bar in bars], [[1.5, 2.5], [-1, -1]])
    assert ax.get_ylabel() == "change, mean ± s.e." and ax.get_ylim()[0] < -1
    assert ax.get_xlabel() == "stage"


def test_pictures_are_the_photograph_again():
    x, photo = load_photo("chelsea", size=32)
    (panel,) = panels(plot.pictures({"x": x}))
    np.testing.assert_array_equal(shown(panel), photo)


def test_curves_are_means_over_images_with_their_mean_area():
    one = Curves(torch.tensor([0.0, 0.5, 1.0]), torch.tensor([[0.0, 0.5, 1.0], [0.0, 1.0, 1.0]]))
    (ax,) = plot.curves({"map": one}).axes
    (line,) = ax.get_lines()[:1]
    np.testing.assert_allclose(line.get_xydata(), [[0, 0], [0.5, 0.75], [1, 1]])
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["map: 0.625"]
    assert ax.get_ylim()[0] == 0 and ax.get_xlim() == (0, 1)


def test_structures_colour_what_they_cover_and_leave_the_rest_grey():
    first, second = torch.zeros(2, 40, 40, dtype=torch.bool)
    first[:20], second[10:20, :5] = True, True
    figure = plot.structures(PHOTO, {"gland": first, "tumour_nuclei": second}, alpha=1)
    photo, painted = (shown(ax) for ax in panels(figure))
    np.testing.assert_array_equal(photo, PHOTO)
    blue, red = (np.array(to_rgb(colour)) for colour in ("#0072B2", "#D55E00"))
    np.testing.assert_allclose(painted[:10], np.broadcast_to(blue, (10, 40, 3)))
    np.testing.assert_allclose(painted[10:20, :5], np.broadcast_to(red, (10, 5, 3)))  # the later one on top
    np.testing.assert_allclose(painted[20:, :, 0], 0.4 + 0.6 * PHOTO[20:].mean(-1) / 255)
    assert np.ptp(painted[20:], axis=-1).max() < 1e-12
    assert "gland" in words(figure) and "tumour nuclei" in words(figure)


MASKS = {name: torch.rand(40, 40) > 0.5 for name in ("tumour", "gland", "tumour_nuclei", "normal_nuclei", "lumen")}
SQUARES = torch.arange(1, 26).view(5, 5).repeat_interleave(8, 0).repeat_interleave(8, 1)
CURVES = Curves(torch.linspace(0, 1, 29), torch.rand(4, 29))
FIGURES = {
    "maps": lambda: plot.maps({"layer1": torch.randn(8, 8), "layer2": torch.randn(4, 4)}, photo=PHOTO),
    "one map": lambda: plot.maps({"layer1": torch.randn(8, 8)}, label="logits"),
    "grid": lambda: plot.maps({row: {str(i): torch.randn(8, 8) for i in range(4)} for row in ("none", "fixed")}),
    "overlay": lambda: plot.overlay(PHOTO, {"layer1": torch.rand(8, 8), "layer2": torch.rand(4, 4)}),
    "spectrum": lambda: plot.spectrum({str(i): power_spectrum(torch.randn(16, 16)) for i in range(6)}),
    "profile": lambda: plot.profile({"a": torch.randn(16, 16), "b": torch.randn(16, 16)}, mark=(1 / 8, 1 / 4)),
    "taps": lambda: plot.taps([(3, 2), (1, 2), (2, 2), (3, 3), (3, 1)]),
    "long legend": lambda: plot.by_layer({f"a rather long name, number {i}": {"layer1": 2.0} for i in range(5)}, "y"),
    "pictures": lambda: plot.pictures({"x": torch.randn(3, 8, 8), "y": torch.randn(1, 3, 8, 8)}),
    "structures": lambda: plot.structures(PHOTO, MASKS),
    "nuclei": lambda: plot.nuclei(PHOTO, SQUARES, rank_nuclei(torch.randn(40, 40), SQUARES)),
    "curves": lambda: plot.curves({f"layer{i}": CURVES for i in range(8)}),
    "by_layer": lambda: plot.by_layer({"a": {f"layer{i}": float(i) for i in range(8)}, "b": {"layer1": 2.0}}, "y"),
}


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_is_legible_at_700_pixels(name: str):
    before = mpl.rcParams.copy()
    figure = FIGURES[name]()
    assert mpl.rcParams == before
    assert figure.get_figwidth() == plot.WIDTH
    paper = sum(to_rgb(figure.get_facecolor())) / 3
    figure.canvas.draw()
    drawn = figure.get_tightbbox()  # inches
    assert drawn.x0 >= -0.01 and drawn.x1 <= plot.WIDTH + 0.01 and drawn.width >= plot.WIDTH - 0.01
    assert drawn.y0 >= -0.01 and drawn.y1 <= figure.get_figheight() + 0.01
    for text in figure.findobj(mpl.text.Text):
        if text.get_text().strip() and text.get_visible():
            assert text.get_size() * 700 / (72 * plot.WIDTH) >= 10, text  # pixels at 700 px
            on_paper = not (name == "taps" and text.get_text().isdigit())
            assert not on_paper or paper - sum(to_rgb(text.get_color())) / 3 > 0.55, text


@pytest.mark.parametrize("name", FIGURES)
def test_titles_do_not_overlap(name: str):
    figure = FIGURES[name]()
    figure.canvas.draw()
    boxes = sorted((ax.title.get_window_extent() for ax in panels(figure) if ax.get_title()), key=lambda box: box.x0)
    for left, right in zip(boxes, boxes[1:], strict=False):
        assert left.x1 <= right.x0 or left.y0 != right.y0


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: plot.maps({}), "^nothing to draw"),
        (lambda: plot.maps({"a": torch.zeros(1, 2, 3, 3)}), r"^map 'a' has the shape \(1, 2, 3, 3\): .*saliency_map"),
        (lambda: plot.maps({"a": torch.full((2, 2), torch.nan)}), "^map 'a' holds NaN"),
        (
            lambda: plot.maps({"a": torch.zeros(2, 3, 3), "b": torch.zeros(3, 3)}),
            "^maps of different numbers of images",
        ),
        (lambda: plot.maps({"r": {"a": torch.zeros(2, 3, 3)}}), "^a grid with row labels takes one image"),
        (
            lambda: plot.maps({"a": torch.zeros(3, 3)}, photo=PHOTO[..., 0]),
            r"^expected a photograph of shape \(H, W, 3\)",
        ),
        (lambda: plot.maps({"a": torch.zeros(3, 3)}, photo=[PHOTO, PHOTO]), "^2 photographs for 1 rows"),
        (lambda: plot.maps({"a": torch.zeros(3, 3)}, zoom=(0.5, 0, 0.4, 1)), r"^zoom = \(0.5, 0, 0.4, 1\) is not"),
        (lambda: plot.maps({"a": torch.zeros(3, 3)}, percentile=0), "^percentile = 0 is not above 0"),
        (lambda: plot.overlay(PHOTO, torch.zeros(2, 3, 3)), r"^expected the maps of one photograph"),
        (
            lambda: plot.overlay(
                PHOTO, {"a": torch.zeros(3, 3)}, layers={"b": HiddenLayer("b", (1, 3, 3), (9, 9), (0, 0))}
            ),
            "^no layer for the map 'a': the titles with one are 'b'$",
        ),
        (lambda: plot.overlay(PHOTO, torch.zeros(3, 3), interpolation="aligned"), "^mode 'aligned' needs the layer"),
        (lambda: plot.spectrum({"a": torch.zeros(3)}), r"^expected a spectrum of shape \(..., H, W\), got \(3,\)$"),
        (lambda: plot.profile({"a": torch.zeros(3)}), r"^expected maps of shape \(..., H, W\)"),
        (lambda: plot.taps([(3, 0)]), r"^expected pairs \(kernel size, stride\) of positive numbers"),
        (lambda: plot.by_layer({}, "y"), "^nothing to draw"),
        (lambda: plot.curves({}), "^nothing to draw"),
        (lambda: plot.pictures({}), "^nothing to draw"),
        (lambda: plot.structures(PHOTO, {}), "^nothing to draw"),
        (lambda: plot.structures(PHOTO, {str(i): MASKS["gland"] for i in range(8)}), "^got 8 masks: .* colours for 7$"),
        (
            lambda: plot.structures(PHOTO, {"gland": torch.ones(4, 4, dtype=torch.bool)}),
            r"^expected the mask 'gland' as \(40, 40\) of bool, got \(4, 4\) of torch.bool$",
        ),
        (lambda: plot.pictures({"a": torch.zeros(2, 3, 4, 4)}), r"^image 'a' has the shape \(2, 3, 4, 4\): expected"),
    ],
)
def test_bad_input_is_one_line(draw, message: str):
    with pytest.raises(ValueError, match=message) as caught:
        draw()
    assert "\n" not in str(caught.value)


def test_rows_without_an_order_are_not_joined():
    values = {"ours": {"gradient": 1.0, "deeplift": 2.0}}
    for joined, style in ((True, "-"), (False, "None")):
        (line,) = plot.by_layer(values, "ratio", joined=joined).axes[0].get_lines()[:1]
        assert line.get_linestyle() == style and line.get_marker() != "None"
