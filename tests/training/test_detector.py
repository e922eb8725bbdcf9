"""The detectors' training: views that turn pictures and masks alike, a network that learns, a run that resumes."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from smoothsal_lib.datasets.patches import Patches
from smoothsal_lib.datasets.stains import jitter
from smoothsal_lib.models import DenseResNet, TinyResNet, load_model, normalize
from smoothsal_lib.training import detector
from smoothsal_lib.training.detector import CLASSES, Recipe, fit_detector, pixel_classes, random_views, train_epoch
from smoothsal_lib.training.loop import make_optimizer

NARROW = (16, 16, 16, 16)  # what bfloat16 is fast with
QUICK = Recipe(epochs=2, batch=8, sizes=((32, 1.0),))


def made(count=24, size=32, seed=0, people=4):
    """Patches in which tumour is a dark square somewhere, a gland a square frame and a lumen its white inside."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(150, 200, (count, 3, size, size), generator=generator).to(torch.uint8)
    masks = {name: torch.zeros(count, size, size, dtype=torch.bool) for name in ("tumour", "gland", "lumen")}
    labels = torch.arange(count) // 3 % 2
    for i in range(count):
        y, x = torch.randint(0, size - 12, (2,), generator=generator).tolist()
        name = "tumour" if labels[i] else "gland"
        masks[name][i, y : y + 12, x : x + 12] = True
        masks["lumen"][i, y + 4 : y + 8, x + 4 : x + 8] = True
    images[masks["tumour"][:, None].expand_as(images)] = 60
    images[masks["gland"][:, None].expand_as(images)] = 120
    images[masks["lumen"][:, None].expand_as(images)] = 250
    names = [f"picture {i // 3}/{i}" for i in range(count)]
    return Patches(images, labels, torch.arange(count) * people // count, masks, names, 0.62)


def started(kind=TinyResNet, outputs=1):
    torch.manual_seed(0)
    return kind(outputs, NARROW).to(memory_format=torch.channels_last)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


# --- views ------------------------------------------------------------------------------------------------------------


def turned(picture):
    """All eight ways to lay a square on itself."""
    for one in (picture, picture.flip(-1)):
        for quarters in range(4):
            yield one.rot90(quarters, (-2, -1))


def test_a_view_at_the_own_scale_is_the_picture_turned_or_mirrored_and_so_are_its_classes():
    pictures = torch.rand(64, 3, 16, 16)
    classes = torch.randint(0, 4, (64, 16, 16), dtype=torch.uint8)
    views, maps = random_views(pictures, 16, zoom=1, generator=generator(), classes=classes)
    ways = set()
    for view, picture, shown, wanted in zip(views, pictures, maps, classes, strict=True):
        fits = [torch.allclose(view, one, atol=1e-5) for one in turned(picture)]
        assert sum(fits) == 1
        way = fits.index(True)
        assert torch.equal(shown, list(turned(wanted))[way])
        ways.add(way)
    assert ways == set(range(8))
    assert maps.dtype == torch.uint8


def test_larger_views_hold_all_of_the_picture_at_its_own_scale():
    """One white pixel stays one white pixel, or its reflections."""
    pictures = torch.zeros(32, 1, 8, 8)
    pictures[:, :, 4, 3] = 1
    views, _ = random_views(pictures.expand(32, 3, 8, 8), 12, 1, generator())
    assert (views.sum((2, 3)) >= 0.99).all()
    assert torch.equal(views[:, 0], views[:, 1])


def test_zoomed_views_are_within_their_bounds():
    """A bar across the picture, ten pixels broad, is as broad as the factor says; its ends are never seen."""
    pictures = torch.zeros(200, 3, 40, 40)
    pictures[:, :, :, 15:25] = 1
    views, _ = random_views(pictures, 40, 1.25, generator())
    assert views.shape == (200, 3, 40, 40)
    broad = ((views > 0.5).double().sum((2, 3)) / 40)[:, 0]
    assert 8 <= broad.min() < 8.6 and 11.9 < broad.max() <= 13
    assert 9.5 < broad.median() < 10.5  # as often larger as smaller


def test_views_come_from_the_generator_alone():
    pictures = torch.rand(4, 3, 16, 16)
    state = torch.get_rng_state()
    first, second, other = (random_views(pictures, 16, 1.2, generator(seed))[0] for seed in (0, 0, 1))
    assert torch.equal(first, second) and not torch.equal(first, other)
    assert torch.equal(state, torch.get_rng_state())


# --- classes ----------------------------------------------------------------------------------------------------------


def test_classes_of_pixels_by_hand():
    masks = {
        "lumen": torch.tensor([[[1, 0, 0, 0, 1]]]).bool(),
        "tumour": torch.tensor([[[1, 1, 1, 0, 0]]]).bool(),
        "gland": torch.tensor([[[1, 1, 0, 1, 0]]]).bool(),
    }
    names = [CLASSES[i] for i in pixel_classes(masks).flatten().tolist()]
    assert names == ["lumen", "tumour", "tumour", "gland", "lumen"]
    assert pixel_classes({name: torch.zeros(1, 2, 2).bool() for name in masks}).sum() == 0
    assert CLASSES[0] == "stroma"
    with pytest.raises(ValueError, match=r"^no mask 'gland': a segmenter learns from gland, tumour, lumen$"):
        pixel_classes({name: masks[name] for name in ("lumen", "tumour")})


# --- training ---------------------------------------------------------------------------------------------------------


class Watching(TinyResNet):
    """Keeps the pictures that it is shown."""

    def __init__(self):
        super().__init__(1, NARROW)
        self.seen = []

    def forward(self, x):
        self.seen.append(x.detach().clone())
        return super().forward(x)


@pytest.mark.parametrize("epoch", [0, 3])
def test_the_pictures_are_those_of_the_seed_and_the_epoch(epoch):
    recipe, patches = Recipe(epochs=4, batch=8, seed=2, sizes=((32, 0.5), (48, 0.5))), made()
    model = Watching()
    train_epoch(model, make_optimizer(model, recipe), patches, None, epoch, recipe)
    numbers = generator(2 * 100_003 + epoch)
    order = torch.randperm(24, generator=numbers)
    drawn = torch.multinomial(torch.tensor([0.5, 0.5]), 3, replacement=True, generator=numbers)
    assert len(model.seen) == 3
    for step, seen in enumerate(model.seen):
        stained = jitter(patches.images[order[8 * step : 8 * step + 8]], recipe.stain, numbers)
        views, _ = random_views(normalize(stained.float() / 255), (32, 48)[drawn[step]], recipe.zoom, numbers)
        assert torch.equal(seen, views)


def test_a_detector_learns_labels(tmp_path):
    patches, others = made(64), made(32, seed=1)
    recipe = replace(QUICK, epochs=12, batch=16)
    model = started()
    curve = fit_detector(model, patches, recipe, tmp_path / "x.checkpoint.pt", validation=others)
    assert curve[-1]["loss"] < 0.4 < curve[0]["loss"]
    assert curve[-1]["val_auc"] > 0.95
    assert len(curve) == 12 and not model.training


def test_a_segmenter_learns_masks(tmp_path):
    patches, others = made(64), made(32, seed=1)
    recipe = replace(QUICK, epochs=20, batch=16)
    model = started(DenseResNet, 4)
    curve = fit_detector(model, patches, recipe, tmp_path / "x.checkpoint.pt", validation=others)
    everything_stroma = (pixel_classes(others.masks) == 0).double().mean().item()
    assert everything_stroma < 0.87 < 0.9 < curve[-1]["val_accuracy"]


@pytest.mark.parametrize(("kind", "outputs"), [(TinyResNet, 1), (DenseResNet, 4)])
def test_a_killed_run_ends_as_an_uninterrupted_one(kind, outputs, tmp_path, monkeypatch):
    patches, recipe = made(), replace(QUICK, epochs=3)
    whole = started(kind, outputs)
    curve = fit_detector(whole, patches, recipe, tmp_path / "whole.checkpoint.pt")
    real, epochs = detector.train_epoch, []

    def killed_in_the_third_epoch(*args):
        epochs.append(args[4])
        if len(epochs) == 3:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(detector, "train_epoch", killed_in_the_third_epoch)
    with pytest.raises(KeyboardInterrupt):
        fit_detector(started(kind, outputs), patches, recipe, tmp_path / "killed.checkpoint.pt")
    resumed = started(kind, outputs)
    rest = fit_detector(resumed, patches, recipe, tmp_path / "killed.checkpoint.pt")
    assert epochs == [0, 1, 2, 2]
    assert [row["loss"] for row in rest] == [row["loss"] for row in curve]
    for key, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[key]), key


def test_other_patches_or_another_recipe_do_not_take_over_a_checkpoint(tmp_path):
    patches, path = made(16), tmp_path / "x.checkpoint.pt"
    fit_detector(started(), patches, replace(QUICK, epochs=1), path)
    marked = patches.images.clone()
    marked[0, :, :4, :4] = 0
    for others, recipe in (
        (Patches(marked, patches.labels, patches.patients), QUICK),
        (patches[:12], QUICK),
        (Patches(patches.images, torch.ones(16).long(), patches.patients), QUICK),
        (patches, replace(QUICK, stain=0.3)),
    ):
        with pytest.raises(ValueError, match="use those settings, or remove the file$") as error:
            fit_detector(started(), others, replace(recipe, epochs=1), path)
        assert "\n" not in str(error.value)


def test_a_segmenter_without_masks_is_refused(tmp_path):
    patches = made(16)
    bare = Patches(patches.images, patches.labels, patches.patients)
    with pytest.raises(ValueError, match="^no mask 'gland'"):
        fit_detector(started(DenseResNet, 4), bare, QUICK, tmp_path / "x.checkpoint.pt")


def test_training_leaves_the_global_random_state_alone(tmp_path):
    state = torch.get_rng_state()
    model = detector.new_model("tissue_resnet", seed=3)
    fit_detector(model, made(16, size=32), replace(QUICK, epochs=1), tmp_path / "x.checkpoint.pt")
    assert torch.equal(state, torch.get_rng_state())
    again, other = (detector.new_model("tissue_resnet", seed).conv1.weight for seed in (3, 4))
    assert torch.equal(again, detector.new_model("tissue_resnet", 3).conv1.weight) and not torch.equal(again, other)


# --- figures ----------------------------------------------------------------------------------------------------------


def test_figures_of_a_detector_by_hand():
    scores = torch.tensor([-1.0, 2, -3, 4, 5, -6])
    labels = torch.tensor([0, 1, 0, 1, 0, 0])
    colours = torch.tensor([0.0, 1, 1, 0, 0, 0])
    found = detector.detection_figures(scores, colours, labels, torch.tensor([0, 0, 1, 1, 2, 2]))
    assert found["cases"] == 6 and found["patients"] == 3
    assert found["base_rate"] == pytest.approx(1 / 3) and found["accuracy"] == pytest.approx(5 / 6)
    assert found["auc"] == 6 / 8
    assert found["auc_colour"] == 5 / 8  # three pairs won, four even, one lost
    assert found["auc_gain"] == 1 / 8
    for what in ("auc", "auc_colour", "auc_gain"):
        low, high = found[f"{what}_interval"]
        assert low <= found[what] <= high
    assert found["beats_colour"] is False
    assert detector.detection_figures(labels * 9.0, 1.0 - labels, labels, torch.arange(6))["beats_colour"] is True


def test_pictures_have_the_mean_of_their_patches():
    patches = made(9, people=3)
    means = detector.per_picture(torch.arange(9.0), patches)
    assert means.tolist() == [1, 4, 7]
    mixed = patches[torch.tensor([8, 0, 7, 1])]
    assert detector.per_picture(torch.tensor([1.0, 10, 3, 20]), mixed).tolist() == [2, 15]


def test_figures_of_a_segmenter_by_hand():
    masks = {
        "gland": torch.tensor([[[0, 1, 0, 0]]]).bool(),
        "tumour": torch.tensor([[[0, 0, 1, 1]]]).bool(),
        "lumen": torch.zeros(1, 1, 4).bool(),
    }
    patches = Patches(torch.zeros(1, 3, 1, 4).to(torch.uint8), torch.ones(1).long(), torch.zeros(1).long(), masks)

    class Answer(torch.nn.Module):
        """Stroma, stroma, tumour, gland; the last two the likeliest to be tumour."""

        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def forward(self, x):
            logits = torch.tensor([[2.0, 2, 0, 0], [0, 0, 0, 3], [-1, 1, 4, 2], [0, 0, 0, 0]])
            return logits[None, :, None].expand(len(x), 4, 1, 4)

    found = detector.segmentation_figures(Answer(), patches)
    assert found["accuracy"] == 0.5
    assert found["share"] == {"stroma": 0.25, "gland": 0.25, "tumour": 0.5, "lumen": 0}
    assert found["iou"]["stroma"] == 0.5 and found["iou"]["gland"] == 0 and found["iou"]["tumour"] == 0.5
    assert found["iou"]["lumen"] is None  # there was none, and none was called so
    assert found["tumour_average_precision"] == pytest.approx(1)


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture
def fake_sources(monkeypatch):
    """Patches of our own making in the place of both sources; GlaS' four folds have four pictures each."""

    def grown(count, size=96, seed=0):
        return made(count, seed=seed, people=count // 4)

    def cut(root=None, split="train", *, patients=None, nuclei=True):
        assert not nuclei
        patients = detector.glas.SPLITS[split] if patients is None else patients
        everyone = sorted(patient for fold in detector.glas.FOLDS for patient in fold)
        patches = made(12 * len(everyone), people=len(everyone))
        numbered = torch.tensor(everyone)[patches.patients]
        whole = Patches(patches.images, patches.labels, numbered, patches.masks, patches.names)
        return whole.of_patients(patients)

    monkeypatch.setattr(detector.tissue, "patches", grown)
    monkeypatch.setattr(detector.glas, "patches", cut)
    monkeypatch.setattr(detector, "WIDTHS", NARROW)


def run(name, out, *options):
    detector.main(["--model", name, "--out", str(out), "--device", "cpu", "--epochs", "1", "--patches", "96", *options])
    return json.loads((out / "results" / f"{name}_training.json").read_text())


@pytest.mark.parametrize("name", ["tissue_resnet", "glas_resnet"])
def test_a_detector_with_its_record_and_card(name, fake_sources, tmp_path):
    record = run(name, tmp_path)
    assert record["command"].startswith(f"python -m smoothsal_lib.training.detector --model {name} --epochs 1 --seed 0")
    assert ("--patches 96" in record["command"]) == (name == "tissue_resnet")
    assert {"versions", "device", "date", "recipe", "curve", "train", "test"} <= set(record)
    assert ("val_auc" in record["curve"][0]) == (name == "tissue_resnet")
    found = record["figures"]["patches"]
    assert found["cases"] == record["test"]["patches"] and found["auc_interval"][0] <= found["auc"]
    assert ("pictures" in record["figures"]) == (name == "glas_resnet")
    model = load_model(name, folder=tmp_path)
    assert model.categories == ["tumour"] and model(torch.zeros(1, 3, 64, 64)).shape == (1, 1)
    card = (tmp_path / f"{name}.md").read_text()
    assert "{" not in card and f"{found['auc']:.3f}" in card and "no medical device" in card
    assert ("research use only" in card and "Sirinukunwattana" in card) == (name == "glas_resnet")
    assert max(map(len, card.splitlines()[:16])) <= 120


def test_a_segmenter_with_its_record_and_card(fake_sources, tmp_path):
    record = run("tissue_segmenter", tmp_path)
    assert set(record["figures"]["pixels"]["iou"]) == set(CLASSES)
    model = load_model("tissue_segmenter", folder=tmp_path)
    assert model.categories == list(CLASSES) and model(torch.zeros(1, 3, 64, 64)).shape == (1, 4, 64, 64)
    card = (tmp_path / "tissue_segmenter.md").read_text()
    assert "{" not in card and "| lumen |" in card
    assert load_file(tmp_path / "tissue_segmenter.safetensors")["head.weight"].dtype == torch.float16


def test_folds_have_no_patient_twice_and_all_patients_are_judged(fake_sources, tmp_path):
    run("glas_resnet", tmp_path)
    begun = (tmp_path / "glas_resnet.checkpoint.pt").stat().st_mtime_ns
    detector.main(
        ["--model", "glas_resnet", "--out", str(tmp_path), "--device", "cpu", "--epochs", "1", "--cross-validate"]
    )
    record = json.loads((tmp_path / "results" / "glas_resnet_cross_validation.json").read_text())
    assert record["command"].endswith("--cross-validate")
    judged = [patient for fold in record["folds"] for patient in fold["of_patients"]]
    assert sorted(judged) == sorted(patient for fold in detector.glas.FOLDS for patient in fold)
    assert record["figures"]["patches"]["cases"] == sum(fold["patches"] for fold in record["folds"])
    assert record["figures"]["patches"]["patients"] == 12
    assert (tmp_path / "glas_resnet.checkpoint.pt").stat().st_mtime_ns == begun  # the first fold was trained already
    card = (tmp_path / "glas_resnet.md").read_text()
    assert "Cross-validation" in card and "| 1, 8, 13 | 36 |" in card


def test_evaluation_trains_nothing(fake_sources, tmp_path, monkeypatch, capsys):
    record = run("tissue_resnet", tmp_path)
    capsys.readouterr()
    monkeypatch.setattr(detector, "load_model", lambda name: load_model(name, folder=tmp_path))
    monkeypatch.setattr(detector, "fit_detector", None)
    detector.main(["--model", "tissue_resnet", "--device", "cpu", "--patches", "96", "--evaluate"])
    assert json.loads(capsys.readouterr().out) == record["figures"]


def test_folds_are_for_glas_alone(capsys):
    with pytest.raises(SystemExit):
        detector.main(["--model", "tissue_resnet", "--cross-validate"])
    assert "--cross-validate is for glas_resnet" in capsys.readouterr().err
