"""The published tumour detector: its names and pixels against torchvision's ResNet18 with the same weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import resnet18

import smoothsal_lib as sal
from smoothsal_lib.camelyon import CamelyonResNet18, load_camelyon_model
from smoothsal_lib.models import normalize

POSITION = {"conv1": "0", "bn1": "1", "layer1": "4", "layer2": "5", "layer3": "6", "layer4": "7"}


@pytest.fixture(scope="module")
def reference() -> nn.Module:
    """torchvision's network with one output and statistics of its own."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = resnet18(num_classes=1).eval()
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1)
                module.bias.data.normal_(0, 0.1)
    return network


@pytest.fixture(scope="module")
def published(reference: nn.Module) -> dict[str, Tensor]:
    """The same weights under the names of ``TorchVisionFCModel("resnet18", num_classes=1, use_conv=True)``."""
    state = {}
    for name, value in reference.state_dict().items():
        head, rest = name.split(".", 1)
        if head == "fc":
            state[name] = value[..., None, None] if rest == "weight" else value
        else:
            state[f"features.{POSITION[head]}.{rest}"] = value
    assert state["features.4.0.conv1.weight"].shape == (64, 64, 3, 3) and state["fc.weight"].shape == (1, 512, 1, 1)
    return state


@pytest.fixture(scope="module")
def pixels() -> Tensor:
    """Two pictures with values from 0 to 255."""
    return torch.randint(0, 256, (2, 3, 256, 224), generator=torch.Generator().manual_seed(0)).float()


@pytest.fixture(scope="module")
def model(published: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> nn.Module:
    path = tmp_path_factory.mktemp("bundle") / "model.pt"
    torch.save(published, path)
    return load_camelyon_model(path)


def monais(pixels: Tensor) -> Tensor:
    """``ScaleIntensityRanged(a_min=0, a_max=255, b_min=-1, b_max=1)``."""
    return pixels / 255 * 2 - 1


def test_it_computes_what_torchvision_does_with_these_weights(model: nn.Module, reference: nn.Module, pixels: Tensor):
    patch = pixels[:, :, :224]
    with torch.no_grad():
        found = model(normalize(patch / 255))
        torch.testing.assert_close(found, reference(monais(patch)), atol=1e-5, rtol=1e-4)
    assert found.shape == (2, 1) and not model.training and model.categories == ["tumour"]
    assert found.std() > 1e-4


def test_a_larger_picture_has_the_mean_score_of_its_windows(
    model: nn.Module, reference: nn.Module, pixels: Tensor, monkeypatch: pytest.MonkeyPatch
):
    with torch.no_grad():
        trunk = nn.Sequential(*list(reference.children())[:-2])(monais(pixels))
        assert trunk.shape == (2, 512, 8, 7)
        windows = torch.cat([reference.fc(trunk[:, :, i : i + 7].mean((2, 3))) for i in (0, 1)], 1)
        found = model(normalize(pixels / 255))
        torch.testing.assert_close(found[:, 0], windows.mean(1), atol=1e-5, rtol=1e-4)
        monkeypatch.setattr(model, "positions", "log_mean_exp")
        expected = windows.exp().mean(1).log()
        torch.testing.assert_close(model(normalize(pixels / 255))[:, 0], expected, atol=1e-5, rtol=1e-4)


def scripted(state: dict[str, Tensor], path: Path) -> None:
    class Published(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.features = nn.Sequential(*list(resnet18().children())[:-2])
            self.fc = nn.Conv2d(512, 1, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.features(x))

    network = Published().eval()
    network.load_state_dict(state)
    torch.jit.save(torch.jit.trace(network, torch.zeros(1, 3, 32, 32)), path)


CONTAINERS: dict[str, Callable[[dict[str, Tensor], Path], None]] = {
    "checkpoint": lambda state, path: torch.save({"model": state, "epoch": 3}, path),
    "lightning": lambda state, path: torch.save({"state_dict": state}, path),
    "several GPUs": lambda state, path: torch.save({f"module.{name}": value for name, value in state.items()}, path),
    "linear": lambda state, path: torch.save({**state, "fc.weight": state["fc.weight"][..., 0, 0]}, path),
    "TorchScript": scripted,
}


@pytest.mark.parametrize("container", CONTAINERS)
def test_the_weights_may_come_in_any_of_these(
    model: nn.Module, published: dict[str, Tensor], container: str, tmp_path: Path
):
    CONTAINERS[container](published, tmp_path / "model.pt")
    found = load_camelyon_model(tmp_path / "model.pt").state_dict()
    for name, value in model.state_dict().items():
        assert torch.equal(found[name], value), name


def test_torchvisions_names_will_do(reference: nn.Module, model: nn.Module, tmp_path: Path):
    torch.save(reference.state_dict(), tmp_path / "model.pt")
    found = load_camelyon_model(tmp_path / "model.pt").state_dict()
    assert all(torch.equal(found[name], value) for name, value in model.state_dict().items())


def test_layers_are_named_as_in_torchvision(model: nn.Module):
    stages = [f"layer{i}.{j}" for i in (1, 2, 3, 4) for j in (0, 1)]
    x = torch.randn(1, 3, 224, 224)
    assert list(sal.hidden_layers(model, x)) == ["relu", "maxpool", *stages]
    strided = [f"layer{i}.0.{part}" for i in (2, 3, 4) for part in ("conv1", "downsample.0")]
    assert list(sal.strided_layers(model)) == ["conv1", *strided]
    for fix in (None, "backward"):
        found = sal.explain(model, x, 0, ["layer4.1", "layer2.0"], "gradient", fix)
        assert found["layer2.0"].shape == (1, 128, 28, 28)


def test_deeplift_adds_up(model: nn.Module, pixels: Tensor):
    x = normalize(pixels[:1] / 255)
    found = sal.explain(model, x, 0, "input", "deeplift", fix=None)["input"]
    with torch.no_grad():
        difference = model(x) - model(torch.zeros_like(x))
    torch.testing.assert_close(found.sum((1, 2, 3)), difference[:, 0], atol=1e-4, rtol=1e-3)


BAD: dict[str, tuple[Any, str]] = {
    "no state dict": ([1, 2], "^model.pt holds no state dict: expected names and tensors$"),
    "another depth": ({"features.4.2.conv1.weight": torch.zeros(1)}, "outputs?: it has 'layer1.2.conv1.weight'$"),
    "another shape": ({"fc.bias": torch.zeros(2)}, r"resnet18 with 1 output: 'fc.bias' is \(2,\) instead of \(1,\)$"),
    "a layer lacking": ({"features.7.1.bn2.bias": None}, "it has no 'layer4.1.bn2.bias'$"),
}


@pytest.mark.parametrize("bad", BAD)
def test_weights_that_do_not_fit_are_one_line(published: dict[str, Tensor], bad: str, tmp_path: Path):
    change, message = BAD[bad]
    stored = {**published, **change} if isinstance(change, dict) else change
    if isinstance(stored, dict):
        stored = {name: value for name, value in stored.items() if value is not None}
    torch.save(stored, tmp_path / "model.pt")
    with pytest.raises(ValueError, match=message) as caught:
        load_camelyon_model(tmp_path / "model.pt")
    assert "\n" not in str(caught.value)


def test_other_bad_input_is_one_line(tmp_path: Path):
    with pytest.raises(
        FileNotFoundError, match="^no weights '.*none.pt': MONAI's bundle pathology_tumor_detection has"
    ):
        load_camelyon_model(tmp_path / "none.pt")
    (tmp_path / "model.pt").write_text("no weights at all")
    with pytest.raises(ValueError, match=r"^model.pt is no file that torch.load\(weights_only=True\) can read$"):
        load_camelyon_model(tmp_path / "model.pt")
    with pytest.raises(ValueError, match="^unknown positions 'max': choose one of mean, log_mean_exp$"):
        load_camelyon_model(tmp_path / "model.pt", "max")
    with pytest.raises(ValueError, match=r"^expected pictures of at least 224 x 224 pixels, got \(223, 224\)$"):
        CamelyonResNet18()(torch.zeros(1, 3, 223, 224))
