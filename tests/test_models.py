from __future__ import annotations

import urllib.error
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import nn
from torchvision.models import ResNet18_Weights, resnet18

from smoothsal_lib import models
from smoothsal_lib.embedded import PACKAGE, data_folder
from smoothsal_lib.models import (
    TinyResNet,
    load_model,
    load_surrogate,
    load_weights,
    normalize,
    save_weights,
    top_classes,
)

NAMES = ["tabby, tabby cat", "espresso", "projectile, missile"]


@pytest.fixture
def small() -> TinyResNet:
    torch.manual_seed(0)
    return TinyResNet(classes=3, widths=(4, 6, 8, 10)).eval()


@pytest.fixture
def folder(small: TinyResNet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with weights, which the library takes for its own data."""
    save_weights(small, tmp_path / "tiny_resnet.safetensors", NAMES)
    monkeypatch.setattr(models, "data_folder", lambda: tmp_path)
    monkeypatch.delenv("SMOOTHSAL_MODEL", raising=False)
    return tmp_path


def test_normalize_by_hand():
    image = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1) + torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)
    torch.testing.assert_close(normalize(image), torch.ones(1, 3, 1, 1))


@pytest.mark.parametrize("size", [32, 64, 96, 75])
def test_tiny_resnet_takes_any_size(small: TinyResNet, size: int):
    assert small(torch.randn(2, 3, size, size + 8)).shape == (2, 3)


def test_every_downsampling_of_tiny_resnet_is_a_strided_convolution():
    model = TinyResNet()
    strided = {name for name, m in model.named_modules() if isinstance(m, nn.Conv2d) and m.stride == (2, 2)}
    stages = {f"layer{i}.0.{part}" for i in (2, 3, 4) for part in ("conv1", "downsample.0")}
    assert strided == {"conv1"} | stages
    assert not [m for m in model.modules() if isinstance(m, nn.MaxPool2d | nn.AvgPool2d)]


def test_weights_are_stored_in_half_precision_and_read_in_the_models_own(small: TinyResNet, tmp_path: Path):
    path = tmp_path / "weights.safetensors"
    save_weights(small, path)
    with safe_open(path, framework="pt") as file:
        assert file.get_tensor("conv1.weight").dtype == torch.float16
        assert file.metadata() is None
    other = TinyResNet(3, (4, 6, 8, 10))
    load_weights(other, path)
    for name, value in other.state_dict().items():
        original = small.state_dict()[name]
        assert value.dtype == original.dtype
        torch.testing.assert_close(value, original.half().to(value.dtype) if value.is_floating_point() else original)


def test_load_model_restores_weights_names_and_mode(small: TinyResNet, folder: Path):
    model = load_model("tiny_resnet")
    assert not any(module.training for module in model.modules())
    assert model.categories == ["tabby", "espresso", "projectile"]
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(model(x), small(x), atol=2e-2, rtol=1e-2)
    assert model.fc.weight.dtype == torch.float32


def test_load_model_reads_another_folder(small: TinyResNet, folder: Path, tmp_path: Path):
    other = tmp_path / "other"
    other.mkdir()
    save_weights(TinyResNet(2, (2, 2, 2, 2)), other / "tiny_resnet.safetensors", ["a", "b"])
    assert load_model("tiny_resnet", folder=other).categories == ["a", "b"]


def test_the_environment_names_the_default_model(folder: Path, monkeypatch: pytest.MonkeyPatch):
    assert isinstance(load_model(), TinyResNet)
    monkeypatch.setenv("SMOOTHSAL_MODEL", "resnet_of_mine")
    with pytest.raises(
        ValueError, match=r"^unknown model 'resnet_of_mine': .*tiny_resnet, resnet18, resnet34, resnet50$"
    ):
        load_model()
    assert isinstance(load_model("tiny_resnet"), TinyResNet)  # a name given is a name meant


def test_weights_without_names_are_refused(small: TinyResNet, folder: Path):
    save_weights(small, folder / "tiny_resnet.safetensors")
    with pytest.raises(ValueError, match="names 0 categories for 3 outputs"):
        load_model("tiny_resnet")


def test_missing_weights_are_named(folder: Path):
    (folder / "tiny_resnet.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"^no tiny_resnet.safetensors in .*training.classifier makes it$"):
        load_model("tiny_resnet")
    with pytest.raises(FileNotFoundError, match=r"^no tiny_resnet_surrogate.safetensors in .*fit_surrogate"):
        load_surrogate()
    with pytest.raises(ValueError, match="^no surrogate of 'resnet50' ships with the library"):
        load_surrogate("resnet50")


@pytest.mark.parametrize(
    "error",
    [urllib.error.URLError("no route to host"), RuntimeError('invalid hash value (expected "f37072fd",\n got "0")')],
)
def test_a_failed_download_is_one_line_that_names_the_embedded_network(
    monkeypatch: pytest.MonkeyPatch, error: Exception
):
    asked = {}

    def fail(self: ResNet18_Weights, **options: object) -> None:
        asked.update(options)
        raise error

    monkeypatch.setattr(ResNet18_Weights, "get_state_dict", fail)
    with pytest.raises(RuntimeError) as caught:
        load_model("resnet18")
    message = str(caught.value)
    assert message.startswith("the weights of resnet18 could not be downloaded (") and "\n" not in message
    assert message.endswith("the embedded load_model('tiny_resnet') needs no network")
    assert caught.value.__suppress_context__
    assert asked == {"progress": True, "check_hash": True, "weights_only": True}


def test_torchvisions_networks_come_with_their_names(monkeypatch: pytest.MonkeyPatch):
    torch.manual_seed(0)
    state = resnet18().state_dict()
    monkeypatch.setattr(ResNet18_Weights, "get_state_dict", lambda self, **options: state)
    model = load_model("resnet18")
    assert len(model.categories) == 1000 and model.categories[281] == "tabby"
    assert not model.training
    torch.testing.assert_close(model.conv1.weight, state["conv1.weight"])


class Fixed(nn.Module):
    """Always the same logits: the logarithms of 0.2, 0.7 and 0.1."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tensor([[0.2, 0.7, 0.1]]).log().expand(len(self.norm(x)), -1)


def test_top_classes_by_hand():
    model, x = Fixed(), torch.randn(2, 3, 4, 4)
    model.categories = ["tabby", "espresso", "projectile"]
    found = top_classes(model, x, k=2)
    assert len(found) == 2
    for one in found:
        assert [name for name, _ in one] == ["espresso", "tabby"]
        assert [p for _, p in one] == pytest.approx([0.7, 0.2])


def test_top_classes_leaves_the_network_as_it_was():
    model = Fixed().train()
    assert top_classes(model, torch.randn(1, 3, 4, 4), k=1)[0][0][0] == "class 1"
    assert model.training and model.norm.num_batches_tracked == 0


@pytest.mark.parametrize("k", [0, 4])
def test_top_classes_refuses_a_k_that_cannot_be(k: int):
    with pytest.raises(ValueError, match=f"^k = {k} is not between 1 and the network's 3 classes$"):
        top_classes(Fixed(), torch.randn(1, 3, 4, 4), k=k)


def test_top_classes_refuses_a_single_picture_without_batch():
    with pytest.raises(ValueError, match=r"shape \(N, C, H, W\), got \(3, 4, 4\)"):
        top_classes(Fixed(), torch.randn(3, 4, 4))


def test_the_data_folder_is_the_checkouts_or_the_wheels():
    assert data_folder() in (PACKAGE / "data", PACKAGE.parent / "data")


def test_the_data_folder_of_an_installed_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    package = tmp_path / "smoothsal_lib"
    package.mkdir()
    (tmp_path / "data").mkdir()  # somebody else's: there is no pyproject.toml beside it
    monkeypatch.setattr("smoothsal_lib.embedded.PACKAGE", package)
    with pytest.raises(FileNotFoundError, match="data folder is missing"):
        data_folder()
    (package / "data").mkdir()
    assert data_folder() == package / "data"
    (package / "data").rmdir()
    (tmp_path / "pyproject.toml").touch()
    assert data_folder() == tmp_path / "data"
