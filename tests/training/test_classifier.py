"""The classifier's training: resumes after a kill as if nothing had happened, and writes all it promises."""

import json
from functools import partial

import pytest
import torch
from safetensors.torch import load_file

from smoothsal_lib.models import TinyResNet, normalize
from smoothsal_lib.training import classifier
from smoothsal_lib.training.classifier import (
    POLISH,
    Recipe,
    add_noise,
    fit,
    learning_rate,
    make_optimizer,
    random_crops,
    sizes_of_epoch,
    train_epoch,
)

CPU = torch.device("cpu")


def run(data, out, *options, epochs=2, seed=0):
    folders = ["--data", str(data), "--out", str(out)]
    classifier.main([*folders, "--epochs", str(epochs), "--seed", str(seed), "--device", "cpu", *options])
    return load_file(out / "tiny_resnet.safetensors")


def few_pictures(count=12):
    generator = torch.Generator().manual_seed(5)
    pictures = torch.randint(0, 256, (count, 3, 64, 64), dtype=torch.uint8, generator=generator)
    return pictures, torch.arange(count) % 3


class Watching(TinyResNet):
    """Keeps the pictures that it is shown."""

    def __init__(self):
        super().__init__(3, (8, 8, 8, 8))
        self.seen = []

    def forward(self, x):
        self.seen.append(x.detach().clone())
        return super().forward(x)


def shown(recipe, epoch=0):
    """The batches of an epoch, as the network gets them."""
    model = Watching()
    train_epoch(model, make_optimizer(model, recipe), *few_pictures(), epoch, recipe, CPU)
    return model.seen


@pytest.fixture(scope="module", autouse=True)
def narrow():
    """The command trains a network of few channels, which takes seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(classifier, "TinyResNet", partial(TinyResNet, widths=(8, 8, 8, 8)))
        yield


@pytest.fixture(scope="module")
def uninterrupted(fake_data, tmp_path_factory):
    out = tmp_path_factory.mktemp("uninterrupted")
    return out, run(fake_data, out)


def test_a_killed_run_ends_as_an_uninterrupted_one(fake_data, uninterrupted, tmp_path, monkeypatch):
    train_epoch, calls = classifier.train_epoch, []

    def killed_in_the_second_epoch(*args):
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return train_epoch(*args)

    monkeypatch.setattr(classifier, "train_epoch", killed_in_the_second_epoch)
    with pytest.raises(KeyboardInterrupt):
        run(fake_data, tmp_path)
    assert not (tmp_path / "tiny_resnet.safetensors").exists()
    resumed = run(fake_data, tmp_path)
    finished, killed = Recipe(epochs=2).all_epochs, 1
    assert len(calls) == finished + killed  # the first epoch was not repeated
    for key, value in uninterrupted[1].items():
        assert torch.equal(value, resumed[key]), key


def test_weights_card_and_curve_are_written(uninterrupted):
    out, _ = uninterrupted
    record = json.loads((out / "results" / "tiny_resnet_training.json").read_text())
    assert len(record["curve"]) == Recipe(epochs=2).all_epochs
    assert record["command"].startswith("python -m smoothsal_lib.training.classifier")
    assert {"versions", "device", "date", "recipe"} <= set(record)
    card = (out / "tiny_resnet.md").read_text()
    assert "Top-1" in card and "chelsea" in card and "{" not in card


def test_another_recipe_does_not_take_over_a_checkpoint(fake_data, uninterrupted):
    out, _ = uninterrupted
    with pytest.raises(ValueError, match="seed.*0") as error:
        run(fake_data, out, seed=1)
    assert "\n" not in str(error.value)


def test_the_size_schedule_begins_small_and_ends_large():
    recipe = Recipe(epochs=34)
    sizes = [sizes_of_epoch(epoch, recipe) for epoch in range(34)]
    assert sizes[0] == {48: 1.0} and max(sizes[-1]) == 128
    assert [sizes_of_epoch(epoch, recipe) for epoch in (34, 38)] == [sizes for _, sizes in POLISH]
    assert all(sum(shares.values()) == pytest.approx(1) for shares in sizes)
    with pytest.raises(ValueError, match=r"^epoch 41 is not one of the recipe's 41, which count from 0$"):
        sizes_of_epoch(41, recipe)


def test_a_recipe_without_a_cycle_is_one_polish():
    recipe = Recipe(epochs=0, polish=((3, {64: 1.0}),), polish_lr=0.3)
    assert [sizes_of_epoch(epoch, recipe) for epoch in range(recipe.all_epochs)] == [{64: 1.0}] * 3
    assert [learning_rate(done, recipe) for done in (1e-9, 1, 2, 3)] == pytest.approx([0.3, 0.2, 0.1, 0])


def test_the_learning_rate_rises_and_falls_to_zero():
    recipe = Recipe(epochs=8, warmup=0.25, peak_lr=0.4, polish_lr=0.01)
    assert learning_rate(1.0, recipe) == pytest.approx(0.2)
    assert learning_rate(2.0, recipe) == pytest.approx(0.4)
    assert learning_rate(8.0, recipe) == pytest.approx(0, abs=1e-7)
    (first, _), (second, _) = POLISH
    assert learning_rate(8 + first / 2, recipe) == pytest.approx(0.005)
    assert learning_rate(8 + first + second / 2, recipe) == pytest.approx(0.005)
    assert learning_rate(8.0 + first + second, recipe) == pytest.approx(0)


def test_a_crop_of_everything_is_the_picture_or_its_mirror_image():
    pictures = torch.rand(8, 3, 16, 16)
    crops = random_crops(pictures, 16, smallest=1.0, generator=torch.Generator().manual_seed(3))
    square = [
        torch.allclose(c, p, atol=1e-5) or torch.allclose(c, p.flip(-1), atol=1e-5)
        for c, p in zip(crops, pictures, strict=True)
    ]
    assert crops.shape == pictures.shape
    assert not all(square)  # the aspect ratio still varies
    assert crops.min() >= 0 and crops.max() <= 1


def test_the_noise_has_the_share_of_each_pictures_range_that_it_says():
    generator = torch.Generator().manual_seed(1)
    pictures = torch.rand(3, 3, 64, 64, generator=generator) * torch.tensor([1.0, 10.0, 0.1]).view(3, 1, 1, 1) - 2
    noise = add_noise(pictures, 0.2, generator) - pictures
    ranges = [picture.max().item() - picture.min().item() for picture in pictures]
    assert noise.std((1, 2, 3)).tolist() == pytest.approx([0.2 * extent for extent in ranges], rel=0.03)
    assert (noise.mean((1, 2, 3)).abs() < 0.02 * torch.tensor(ranges)).all()
    # Independent: of other pictures, of other channels, and of the neighbour.
    unit = noise / noise.std((1, 2, 3), keepdim=True)
    for one, other in ((unit[0], unit[1]), (unit[:, 0], unit[:, 1]), (unit[..., 1:], unit[..., :-1])):
        assert (one * other).mean().abs() < 0.05


@pytest.mark.parametrize("noise", [-0.1, float("nan"), float("inf")])
def test_noise_that_is_no_share_is_refused(noise):
    with pytest.raises(ValueError, match="^noise = ") as error:
        shown(Recipe(epochs=1, batch=4, noise=noise))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("epoch", [0, 2])
def test_without_noise_the_pictures_are_those_of_the_seed_and_the_epoch(epoch):
    """The random numbers of order, sizes and crops in the sequence in which the embedded network saw them."""
    recipe = Recipe(epochs=1, batch=4, seed=3)
    pictures, _ = few_pictures()
    sizes = {0: [(64, 1.0)], 2: [(64, 0.85), (128, 0.15)]}[epoch]
    generator = torch.Generator().manual_seed(3 * 100_003 + epoch)
    order = torch.randperm(12, generator=generator)
    drawn = torch.multinomial(torch.tensor([share for _, share in sizes]), 3, replacement=True, generator=generator)
    for step, batch in enumerate(shown(recipe, epoch)):
        x = normalize(pictures[order[4 * step : 4 * step + 4]].float() / 255)
        assert torch.equal(batch, random_crops(x, sizes[drawn[step]][0], 0.4 if epoch == 0 else 0.8, generator))


def test_noise_comes_on_the_crops_that_training_without_it_sees():
    clean, noisy = (shown(Recipe(epochs=1, batch=4, noise=noise)) for noise in (0.0, 0.1))
    assert len(clean) == len(noisy) == 3
    noise = [n - c for n, c in zip(noisy, clean, strict=True)]
    for one, crops in zip(noise, clean, strict=True):
        extent = crops.amax((1, 2, 3)) - crops.amin((1, 2, 3))
        assert one.std((1, 2, 3)).tolist() == pytest.approx((0.1 * extent).tolist(), rel=0.03)


def test_every_step_and_every_epoch_has_noise_of_its_own():
    clean, noisy = (Recipe(epochs=0, polish=((2, {64: 1.0}),), batch=6, noise=noise) for noise in (0.0, 0.1))
    noise = [n - c for epoch in (0, 1) for n, c in zip(shown(noisy, epoch), shown(clean, epoch), strict=True)]
    assert len(noise) == 4
    unit = [one.flatten() / one.norm() for one in noise]
    assert all(abs(unit[i] @ unit[j]) < 0.05 for i in range(4) for j in range(i))


def test_a_killed_run_with_noise_ends_as_an_uninterrupted_one(tmp_path, monkeypatch):
    recipe = Recipe(epochs=0, polish=((3, {64: 1.0}),), batch=4, noise=0.3)
    pictures = few_pictures()

    def fitted(name):
        torch.manual_seed(0)
        model = TinyResNet(3, (8, 8, 8, 8))
        return model, fit(model, recipe, pictures, pictures, tmp_path / f"{name}.checkpoint.pt", CPU)

    whole, curve = fitted("uninterrupted")
    epochs = []

    def killed_in_the_third_epoch(*args):
        epochs.append(args[4])
        if len(epochs) == 3:
            raise KeyboardInterrupt
        return train_epoch(*args)

    monkeypatch.setattr(classifier, "train_epoch", killed_in_the_third_epoch)
    with pytest.raises(KeyboardInterrupt):
        fitted("killed")
    resumed, resumed_curve = fitted("killed")
    assert epochs == [0, 1, 2, 2]
    assert not resumed.training and not fitted("killed")[0].training  # whether there was something left to do or not
    assert [row["loss"] for row in resumed_curve] == [row["loss"] for row in curve]
    for key, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[key]), key
    pictures = few_pictures(8)
    with pytest.raises(ValueError, match="'pictures': 12"):
        fitted("killed")


def test_training_with_noise_replaces_no_weights_but_its_own(fake_data, tmp_path, monkeypatch):
    monkeypatch.setattr(classifier, "train_epoch", lambda *_: 0.0)
    run(fake_data, tmp_path / "noisy", "--noise", "0.1", epochs=1)
    record = json.loads((tmp_path / "noisy" / "results" / "tiny_resnet_training.json").read_text())
    assert record["recipe"]["noise"] == 0.1 and record["command"].endswith("--noise 0.1")
    run(fake_data, tmp_path / "noisy", "--noise", "0.1", epochs=1)  # the same again

    (tmp_path / "others").mkdir()
    weights = tmp_path / "others" / "tiny_resnet.safetensors"
    weights.write_bytes(b"of another network")
    with pytest.raises(ValueError, match=r"^training with noise would replace .*: give another folder as --out$"):
        run(fake_data, tmp_path / "others", "--noise", "0.1", epochs=1)
    assert weights.read_bytes() == b"of another network"
