"""The command that fits, measures and stores a surrogate."""

import argparse
import io
import json
import tarfile

import pytest
import torch
from torchvision.transforms.functional import to_pil_image

import smoothsal_lib as sal
from smoothsal_lib.datasets.patches import Patches
from smoothsal_lib.models import TinyResNet, normalize
from smoothsal_lib.training import detector, surrogate


@pytest.fixture(scope="module")
def made(fake_data, tmp_path_factory):
    out = tmp_path_factory.mktemp("surrogate")
    surrogate.main(["--data", str(fake_data), "--out", str(out), "--images", "32", "--device", "cpu"])
    return out


def test_weights_load_and_carry_their_errors(made):
    loaded = sal.Surrogate.load(made / "tiny_resnet_surrogate.safetensors")
    assert len(loaded.errors) == 6
    assert loaded.record["images"] == 32


def test_card_and_record(made):
    card = (made / "tiny_resnet_surrogate.md").read_text()
    assert "Top-1" in card and "layer2.0.conv1" in card and "{" not in card
    record = json.loads((made / "results" / "tiny_resnet_surrogate.json").read_text())
    assert {"command", "versions", "device", "date", "top1", "agreement"} <= set(record)


def test_recipes_are_compared_on_the_device_that_was_asked_for(tmp_path, monkeypatch):
    seen = []

    def fit_and_measure(name, model, images, data, **options):
        seen.append((images.device.type, len(images), options.get("epochs"), options.get("recipe")))
        return None, {"top1": 0.5}

    monkeypatch.setattr(surrogate, "training_images", lambda name, count, data: torch.zeros(count, 3, 8, 8))
    monkeypatch.setattr(surrogate, "fit_and_measure", fit_and_measure)
    arguments = argparse.Namespace(
        model="tiny_resnet", images=16, paper_images=24, data=None, out=tmp_path, seed=0, device="meta"
    )
    rows = surrogate.compare(None, arguments)
    assert seen == [("meta", 16, None, None), ("meta", 16, 0, None), ("meta", 24, None, "paper")]
    assert list(rows) == ["least squares", "least squares, no descent", "paper, 24 images"]


# --- to pictures of one's own -----------------------------------------------------------------------------------------


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A shard to fit to, class folders to measure on, and a network that nobody trained; returns the options."""
    generator = torch.Generator().manual_seed(1)
    with tarfile.open(tmp_path / "train-00.tar", "w") as archive:
        for number in range(13):
            buffer = io.BytesIO()
            to_pil_image(torch.rand(3, 40, 44, generator=generator)).save(buffer, "PNG")
            member = tarfile.TarInfo(f"{number}.png")
            member.size = buffer.tell()
            archive.addfile(member, io.BytesIO(buffer.getvalue()))
    for name in "ab":
        (tmp_path / "val" / name).mkdir(parents=True)
        to_pil_image(torch.rand(3, 36, 36, generator=generator)).save(tmp_path / "val" / name / "1.png")
    torch.manual_seed(0)
    network = TinyResNet(5, (4, 4, 8, 8)).eval()
    monkeypatch.setattr(surrogate, "load_model", lambda name: network)
    source = str(tmp_path / "train-{00..00}.tar")
    return ["--images-from", source, "--held-out-from", str(tmp_path / "val"), "--size", "32", "--device", "cpu"]


@pytest.mark.parametrize("recipe", ["least_squares", "paper"])
def test_fit_to_pictures_from_the_disk(own, tmp_path, recipe):
    options = ["--model", "timm/net", "--images", "all", "--batch-size", "5", "--workers", "0", "--recipe", recipe]
    surrogate.main([*own, *options, "--epochs", "2", "--out", str(tmp_path)])
    loaded = sal.Surrogate.load(tmp_path / "timm-net_surrogate.safetensors")
    record = json.loads((tmp_path / "results" / "timm-net_surrogate.json").read_text())
    assert record["errors"].keys() == set(loaded.layers) and record["model"] == "timm/net"
    assert (record["images"], record["batches"], record["held_out"], record["size"]) == (13, 3, 2, 32)
    assert record["presentations"] == 13 * 2 + (13 * 2 if recipe == "least_squares" else 0)
    assert 0 <= record["agreement"] <= 1 and 0 < record["prediction_difference"] < 2
    assert "--images-from train-{00..00}.tar --held-out-from val" in record["command"]
    assert f"--recipe {recipe} --epochs 2 --images all --size 32" in record["command"]
    assert not list(tmp_path.glob("*.checkpoint.pt"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--images-from", "a.tar"], "--images-from and --held-out-from belong together"),
        (["--model", "resnet34"], "no pictures for 'resnet34': give --images-from, or choose tiny_resnet"),
        (["--images", "all"], "--images all is for --images-from: give a number"),
    ],
)
def test_options_that_do_not_fit(options, message, capsys):
    with pytest.raises(SystemExit):
        surrogate.main(options)
    assert message in capsys.readouterr().err


# --- of the networks for tissue ---------------------------------------------------------------------------------------


def tissue_of_our_own(count, size=32, seed=0):
    """Noise, with a mask for every quarter of each patch; half of the patches are of a second, darker kind."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 2
    images = torch.randint(0, 160, (count, 3, size, size), generator=generator) + 90 * (1 - labels)[:, None, None, None]
    masks = {name: torch.zeros(count, size, size, dtype=torch.bool) for name in ("gland", "tumour", "lumen")}
    half = size // 2
    masks["gland"][:, :half, half:] = masks["tumour"][:, half:, :half] = masks["lumen"][:, half:, half:] = True
    names = [f"picture {i // 4}/{i}" for i in range(count)]
    return Patches(images.to(torch.uint8), labels, torch.arange(count) // 4, masks, names)


@pytest.fixture
def fake_tissue(monkeypatch):
    """Both sources replaced, and networks that nobody trained; returns them by their names."""
    monkeypatch.setattr(detector.tissue, "patches", lambda count, seed=0: tissue_of_our_own(min(count, 64), seed=seed))
    monkeypatch.setattr(
        detector.glas,
        "patches",
        lambda root, part, nuclei: tissue_of_our_own({"train": 80, "test": 16}[part], seed=len(part)),
    )
    networks = {name: detector.new_model(name, seed=0).eval() for name in detector.CATEGORIES}
    monkeypatch.setattr(surrogate, "load_model", networks.__getitem__)
    return networks


@pytest.mark.parametrize("name", ["tissue_resnet", "glas_resnet", "tissue_segmenter"])
def test_a_surrogate_for_tissue_with_record_and_card(name, fake_tissue, tmp_path):
    surrogate.main(["--model", name, "--out", str(tmp_path), "--images", "16", "--device", "cpu"])
    loaded = sal.Surrogate.load(tmp_path / f"{name}_surrogate.safetensors")
    assert len(loaded.layers) == (4 if name == "tissue_segmenter" else 6)
    record = json.loads((tmp_path / "results" / f"{name}_surrogate.json").read_text())
    quality = {"accuracy", "iou", "tumour_average_precision"} if name == "tissue_segmenter" else {"auc"}
    assert quality | {f"{what}_original" for what in quality} <= set(record)
    assert record["images"] == 16 and 0 < record["agreement"] <= 1 and 0 < record["prediction_difference"] < 1
    assert record["model"] == name and ("GlaS" in record["data"]) == (name == "glas_resnet")
    card = (tmp_path / f"{name}_surrogate.md").read_text()
    assert "{" not in card and "layer2.0.conv1" in card and "--images 16" in card
    assert ("research use only" in card) == (name == "glas_resnet")


def test_pictures_to_fit_to_are_spread_over_the_training_set(fake_tissue):
    everything = tissue_of_our_own(80, seed=5).images
    found = surrogate.training_images("glas_resnet", 20, None)
    torch.testing.assert_close(found, normalize(everything[::4].float() / 255))


def test_fidelity_of_a_detector_by_hand(fake_tissue, monkeypatch):
    """Of eight patches one is decided otherwise, and its probability moves by a half; another's by a quarter."""
    labels = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])
    patches = Patches(torch.zeros(8, 3, 8, 8).to(torch.uint8), labels, torch.arange(8))
    original = torch.tensor([-2.0, -1, -1, 2, 1, 3, 4, -3])
    repaired = original.clone()
    original[1], repaired[1] = -torch.tensor(3.0).log(), torch.tensor(3.0).log()  # 1/4 and 3/4
    original[4], repaired[4] = 1e-4, torch.tensor(3.0).log()  # 1/2 and 3/4
    monkeypatch.setattr(detector, "load_patches", lambda *_: patches)
    monkeypatch.setattr(surrogate, "all_logits", lambda _, __, fix: (original if fix is None else repaired)[:, None])
    found = surrogate.fidelity("tissue_resnet", None, "the repair", None)
    assert found["agreement"] == 7 / 8
    assert found["prediction_difference"] == pytest.approx(0.75 / 8, abs=1e-4)
    assert found["auc_original"] == 11 / 16  # won: 3 of 4, 4, 4 and none
    assert found["auc"] == pytest.approx((2.5 + 4 + 4 + 0) / 16)


def test_fidelity_of_a_segmenter_counts_pixels(fake_tissue):
    """A surrogate that was never fitted changes what is said of some pixels; none changes nothing."""
    model = fake_tissue["tissue_segmenter"]
    torch.manual_seed(0)
    found = surrogate.fidelity("tissue_segmenter", model, sal.Surrogate.of(model), None)
    same = surrogate.fidelity("tissue_segmenter", model, None, None)
    assert 0 < found["agreement"] < 1 and 0 < found["prediction_difference"] < 2
    assert same["agreement"] == 1 and same["prediction_difference"] == 0
    assert found["accuracy_original"] == same["accuracy_original"] == same["accuracy"]
    assert found["iou_original"] == same["iou"] != found["iou"]
