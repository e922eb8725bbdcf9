from __future__ import annotations

import sys
import urllib.error
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn
from torchvision import models as torchvision_models
from torchvision.models import ResNet18_Weights, VGG16_Weights, resnet18, resnet50, vgg16

import smoothsal_lib as sal
from smoothsal_lib import models
from smoothsal_lib.datasets import voc
from smoothsal_lib.embedded import PACKAGE, data_folder
from smoothsal_lib.models import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    CaffeResNet50,
    CaffeVGG16,
    DenseResNet,
    TinyResNet,
    classifiers,
    load_model,
    load_surrogate,
    load_voc_model,
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
    tissue = "tissue_resnet, glas_resnet, tissue_pen, tissue_segmenter"
    known = f"tiny_resnet, {tissue}, resnet18, resnet34, resnet50, vgg16, another of torchvision's, or timm/NAME"
    with pytest.raises(ValueError, match=f"^unknown model 'resnet_of_mine': choose one of {known}$"):
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
    for name in ("tissue_resnet", "glas_resnet", "tissue_segmenter"):
        with pytest.raises(
            FileNotFoundError, match=rf"^no {name}.safetensors in .*training.detector --model {name} makes"
        ):
            load_model(name)
        with pytest.raises(FileNotFoundError, match=rf"^no {name}_surrogate.safetensors in .*fit_surrogate"):
            load_surrogate(name)
    with pytest.raises(FileNotFoundError, match=r"^no tissue_pen.safetensors in .*experiments.shortcut makes it$"):
        load_model("tissue_pen")
    with pytest.raises(FileNotFoundError, match=r"^no tiny_resnet_surrogate.safetensors in .*fit_surrogate"):
        load_surrogate()
    with pytest.raises(ValueError, match="^no surrogate of 'resnet50' ships with the library"):
        load_surrogate("resnet50")


@pytest.mark.parametrize("name", ["tissue_resnet", "glas_resnet"])
def test_a_tumour_detector_has_one_logit(folder: Path, name: str):
    torch.manual_seed(1)
    detector = TinyResNet(classes=1, widths=(4, 6, 8, 10)).eval()
    detector.fc.bias.data.fill_(0.7)
    save_weights(detector, folder / f"{name}.safetensors", ["tumour"])
    model, x = load_model(name), torch.randn(2, 3, 96, 96)
    assert model.categories == ["tumour"] and model(x).shape == (2, 1)
    torch.testing.assert_close(model(x), detector(x), atol=2e-2, rtol=1e-2)
    found = sal.explain(model, x, target=0, method="gradient", fix=None)
    for layer, gradient in sal.explain(model, x, method="gradient", fix=None).items():
        assert torch.equal(gradient, found[layer])
    with pytest.raises(ValueError, match="^no class 1: this network has classes 0 to 0$"):
        sal.explain(model, x, target=1)


def test_the_segmenter_answers_for_every_pixel(folder: Path):
    torch.manual_seed(1)
    dense = DenseResNet(4, (4, 6, 8, 10)).eval()
    classes = ["stroma", "gland", "tumour", "lumen"]
    save_weights(dense, folder / "tissue_segmenter.safetensors", classes)
    model, x = load_model("tissue_segmenter"), torch.randn(2, 3, 64, 96)
    assert isinstance(model, DenseResNet) and model.categories == classes and not model.training
    assert model(x).shape == (2, 4, 64, 96)
    torch.testing.assert_close(model(x), dense(x), atol=2e-2, rtol=1e-2)
    assert model(torch.randn(1, 3, 75, 50)).shape == (1, 4, 75, 50)


def test_the_segmenter_is_tiny_resnet_up_to_its_last_stride():
    dense, tiny = DenseResNet(), TinyResNet(1, (16, 32, 64, 96))
    lacking = {"head.weight", "head.bias"}, {"fc.weight", "fc.bias"}
    assert {*dense.state_dict()} - lacking[0] == {*tiny.state_dict()} - lacking[1]
    assert list(sal.strided_layers(dense)) == [name for name in sal.strided_layers(tiny) if "layer4" not in name]
    dense.load_state_dict(tiny.state_dict(), strict=False)
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        features = dense.eval().features(x)
        assert features.shape[2:] == (8, 8)
        scores = torch.einsum("kc,ncij->nkij", dense.head.weight[:, :, 0, 0], features) + dense.head.bias[:, None, None]
        # Pixels 0 to 7 belong to the unit centred at 3.5, and pixel 4 lies 1/16 of the way to the next.
        torch.testing.assert_close(dense(x)[0, :, 0, 4], scores[0, :, 0, 0] * 15 / 16 + scores[0, :, 0, 1] / 16)


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


def test_torchvisions_vgg16_is_among_them(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(
        models.torchvision_models, "get_model", lambda name: nn.Linear(2, 2) if name == "vgg16" else None
    )
    monkeypatch.setattr(VGG16_Weights, "get_state_dict", lambda self, **options: nn.Linear(2, 2).state_dict())
    assert load_model("vgg16").categories[281] == "tabby"


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


class Detector(nn.Module):
    """A single logit: that of probability 0.8."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tensor([[0.8]]).logit().expand(len(x), 1)


@pytest.mark.parametrize("k", [1, 5])
def test_top_classes_of_a_detector(k: int):
    model = Detector()
    model.categories = ["tumour"]
    [[(name, p)]] = top_classes(model, torch.randn(1, 3, 4, 4), k=k)
    assert name == "tumour" and p == pytest.approx(0.8)
    with pytest.raises(ValueError, match="^k = 0 is not between 1 and the network's 1 classes$"):
        top_classes(model, torch.randn(1, 3, 4, 4), k=0)


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


# The networks of the pointing game. The reference is torchvision's network, changed by hand to what Caffe computes and
# given pictures prepared the Caffe way (BGR, 0 to 255, minus the mean); the file holds its weights as published.


def _few_numbers(rows: int, columns: int) -> Tensor:
    """A random matrix of which few numbers lie in memory, and so in a file: its rows are those of a sliding window."""
    return torch.randn(rows + columns).mul(columns**-0.5).as_strided((rows, columns), (1, 1))


def _published_vgg16() -> tuple[nn.Module, dict[str, Tensor]]:
    network = vgg16(num_classes=20, init_weights=False)
    for module in network.features:
        if isinstance(module, nn.MaxPool2d):
            module.ceil_mode = True
        elif isinstance(module, nn.Conv2d):  # as strong behind all layers as before the first
            nn.init.kaiming_normal_(module.weight)
    weights = {"classifier.0.weight": _few_numbers(4096, 25088)}
    network.load_state_dict(weights, strict=False)
    state = {
        name.replace("classifier.3", "classifier.2").replace("classifier.6", "classifier.4"): value
        for name, value in {**network.state_dict(), **weights}.items()
    }
    return network, state


def _published_resnet50() -> tuple[nn.Module, dict[str, Tensor]]:
    network = resnet50(num_classes=20)
    network.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=True)
    network.maxpool = nn.MaxPool2d(3, 2, 0, ceil_mode=True)
    for stage in (network.layer2, network.layer3, network.layer4):
        stage[0].conv1, stage[0].conv2 = (
            nn.Conv2d(stage[0].conv1.in_channels, stage[0].conv1.out_channels, 1, 2, bias=False),
            nn.Conv2d(stage[0].conv2.in_channels, stage[0].conv2.out_channels, 3, 1, 1, bias=False),
        )
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.3, 0.3), module.running_var.uniform_(0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5), nn.init.uniform_(module.bias, -0.3, 0.3)
    norms = {name for name, module in network.named_modules() if isinstance(module, nn.BatchNorm2d)}
    state = {}
    for name, value in network.state_dict().items():
        layer, _, kind = name.rpartition(".")
        if layer in norms:
            layer += ".0" if kind.startswith("running") else ".1"
        if kind != "num_batches_tracked":
            state[f"{layer}.{kind}"] = value
    assert "layer2.0.downsample.1.0.running_mean" in state and "layer2.0.downsample.0.weight" in state
    return network, state


PUBLISHED = {"vgg16": _published_vgg16, "resnet50": _published_resnet50}


@pytest.fixture(scope="module", params=list(PUBLISHED))
def published(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, nn.Module, Path]:
    """A name, the network in Caffe's terms, and a file in the published format, written by an old torch."""
    torch.manual_seed(0)
    network, state = PUBLISHED[request.param]()
    path = tmp_path_factory.mktemp("published") / f"{request.param}_voc.pth.tar"
    torch.save(state, path, _use_new_zipfile_serialization=False)
    return request.param, network.double().eval(), path


def _for_caffe(pixels: Tensor) -> Tensor:
    """Pictures (N, 3, H, W) between 0 and 1."""
    mean = torch.tensor([103.939, 116.779, 123.68], dtype=pixels.dtype)
    return pixels[:, [2, 1, 0]] * 255 - mean[:, None, None]


@torch.no_grad()
def _window_scores(network: nn.Module, x: Tensor) -> list[Tensor]:
    """The (N, 20) scores of every window of 7 x 7 places of the last map."""
    if isinstance(network, type(vgg16(num_classes=1, init_weights=False))):
        found, head = network.features(x), lambda window: network.classifier(window.flatten(1))
    else:
        x = network.maxpool(network.relu(network.bn1(network.conv1(x))))
        found = network.layer4(network.layer3(network.layer2(network.layer1(x))))
        head = lambda window: network.fc(window.mean((2, 3)))  # noqa: E731
    rows, columns = found.shape[2] - 6, found.shape[3] - 6
    return [head(found[:, :, i : i + 7, j : j + 7]) for i in range(rows) for j in range(columns)]


def test_published_networks_compute_what_caffe_does(published: tuple[str, nn.Module, Path]):
    arch, network, path = published
    model = load_voc_model(arch, path)
    assert isinstance(model, CaffeVGG16 if arch == "vgg16" else CaffeResNet50)
    assert model.categories == list(voc.CLASSES)
    assert not any(module.training for module in model.modules())
    assert next(model.parameters()).dtype == torch.float32
    pixels = torch.rand(1, 3, 224, 224, dtype=torch.float64)
    with torch.no_grad():
        found, expected = model.double()(normalize(pixels)), network(_for_caffe(pixels))
    torch.testing.assert_close(found, expected, atol=0, rtol=1e-9)
    assert expected.std() > 1e-3 * expected.abs().max()  # the classes differ


def test_a_larger_picture_has_the_mean_score_of_its_windows(published: tuple[str, nn.Module, Path]):
    arch, network, path = published
    model = load_voc_model(arch, path).double()
    pixels = torch.rand(1, 3, 227, 232, dtype=torch.float64)
    scores = torch.stack(_window_scores(network, _for_caffe(pixels)))
    assert len(scores) == 4
    with torch.no_grad():
        found = model(normalize(pixels))
        model.positions = "log_mean_exp"
        soft = model(normalize(pixels))
    torch.testing.assert_close(found, scores.mean(0), atol=0, rtol=1e-9)
    highest = scores.amax(0)
    expected = highest + (scores - highest).exp().mean(0).log()
    torch.testing.assert_close(soft, expected, atol=0, rtol=1e-9)
    assert load_voc_model(arch, path, "log_mean_exp").positions == "log_mean_exp"


def test_published_networks_can_be_explained_and_repaired(published: tuple[str, nn.Module, Path]):
    arch, _, path = published
    model = load_voc_model(arch, path)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    x = normalize(torch.rand(1, 3, 224, 256))
    layer = {"vgg16": "features.29", "resnet50": "layer4.2"}[arch]
    listed = sal.hidden_layers(model, x)
    assert layer in listed and min(one.shape[0] for one in listed.values()) > 3  # the change of colours is not among
    assert listed[layer].stride == {"vgg16": (16, 16), "resnet50": (32, 32)}[arch]
    maps = sal.explain(model, x, 14, ["input", layer], "gradient", None)
    assert {name: tuple(one.shape[:2]) for name, one in maps.items()} == {
        "input": (1, 3), layer: (1, listed[layer].shape[0])
    }  # fmt: skip
    if arch == "vgg16":
        with pytest.raises(ValueError, match="has no strided convolution, so nothing to repair: use fix=None$"):
            sal.explain(model, x, 14, layer, "gradient", "backward")
    else:
        with torch.no_grad(), sal.smoothed(model, "backward"):
            assert model(x).shape == (1, 20)
        repaired = sal.explain(model, x, 14, "input", "gradient", "backward")["input"]
        assert not torch.allclose(repaired, maps["input"])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("published", ["resnet50"], indirect=True)  # a VGG16 has fewer functions, at twice the cost
def test_deeplift_of_a_published_network_adds_up(published: tuple[str, nn.Module, Path]):
    arch, _, path = published
    model = load_voc_model(arch, path).double()
    x = normalize(torch.rand(1, 3, 224, 256, dtype=torch.float64))
    total = sal.explain(model, x, 3, ["input", "layer4"], "deeplift", None)
    with torch.no_grad():
        difference = (model(x) - model(torch.zeros_like(x)))[0, 3]
    for one in total.values():
        torch.testing.assert_close(one.sum(), difference, atol=0, rtol=1e-6)


def test_published_networks_refuse_small_pictures(published: tuple[str, nn.Module, Path]):
    arch, _, path = published
    with pytest.raises(ValueError, match=r"^expected pictures of at least 224 x 224 pixels, got \(300, 223\)$"):
        load_voc_model(arch, path)(torch.zeros(1, 3, 300, 223))


def test_classifier_weights_may_be_those_of_convolutions(tmp_path: Path):
    """Caffe has no difference between the two, and what was converted may have kept four axes."""
    network, state = _published_vgg16()
    four = {f"classifier.{i}.weight": state[f"classifier.{i}.weight"][..., None, None] for i in (2, 4)}
    torch.save({**state, **four}, tmp_path / "four.pth")
    model = load_voc_model("vgg16", tmp_path / "four.pth")
    assert torch.equal(model.classifier[0].weight.flatten(1), network.classifier[0].weight)
    assert torch.equal(model.classifier[6].weight.flatten(1), network.classifier[6].weight)


@pytest.mark.parametrize("make", [resnet50, vgg16])
def test_a_plain_state_dict_is_torchvisions_network(make: Callable[..., nn.Module], tmp_path: Path):
    network = make(num_classes=20).eval()
    state = network.state_dict()
    if make is vgg16:
        state["classifier.0.weight"] = _few_numbers(4096, 25088)
        network.load_state_dict(state)
    torch.save(state, tmp_path / "plain.pth")
    model = load_voc_model(make.__name__, tmp_path / "plain.pth")
    assert type(model) is type(network) and not model.training and model.categories[14] == "person"
    x = torch.randn(1, 3, 224, 240)
    with torch.no_grad():
        assert torch.equal(model(x), network(x))


def test_weights_that_do_not_fit_are_one_line(tmp_path: Path):
    path = tmp_path / "some.pth"
    with pytest.raises(ValueError, match="^unknown network 'resnet18': choose one of vgg16, resnet50$"):
        load_voc_model("resnet18", path)
    with pytest.raises(ValueError, match="^unknown positions 'max': choose one of mean, log_mean_exp$"):
        load_voc_model("resnet50", path, "max")
    with pytest.raises(
        FileNotFoundError, match=r"^no weights '.*some.pth': resnet50_voc-9ca920d6.pth.tar is published"
    ):
        load_voc_model("resnet50", path)
    path.write_bytes(b"no weights")
    with pytest.raises(ValueError, match=r"^some.pth is no file that torch.load\(weights_only=True\) can read$"):
        load_voc_model("resnet50", path)
    torch.save({"weight": torch.zeros(2)}, path)
    damaged = path.read_bytes().replace(b"PK\x01\x02", b"none")
    torch.save({"weight": torch.zeros(2)}, path, _use_new_zipfile_serialization=False)
    for content in (damaged, path.read_bytes()[:-8], b"\x80\x02"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"^some.pth is no file that torch.load\(weights_only=True\) can read$"):
            load_voc_model("resnet50", path)
    torch.save([torch.zeros(2)], path)
    with pytest.raises(ValueError, match="^some.pth holds no state dict: expected names and tensors$"):
        load_voc_model("resnet50", path)
    state = resnet50(num_classes=20).state_dict()
    wide = "^some.pth does not fit a resnet50 with 20 outputs: 'fc.bias' is \\(1000,\\) instead of \\(20,\\)$"
    for changed, message in (
        ({name: value for name, value in state.items() if name != "layer1.0.bn1.bias"}, "has no 'layer1.0.bn1.bias'$"),
        ({**state, "more": torch.zeros(1)}, "outputs: it has 'more'$"),
        ({**state, "fc.bias": torch.zeros(1000)}, wide),
    ):
        torch.save(changed, path)
        with pytest.raises(ValueError, match=message):
            load_voc_model("resnet50", path)
    with pytest.raises(
        ValueError, match="^some.pth does not fit a vgg16 with 20 outputs: it has no 'features.0.weight'$"
    ):
        load_voc_model("vgg16", path)


def test_every_classifier_of_torchvision_is_known_by_its_name(monkeypatch: pytest.MonkeyPatch):
    weights = torchvision_models.get_model_weights("squeezenet1_1")
    state = torchvision_models.squeezenet1_1().state_dict()
    monkeypatch.setattr(weights, "get_state_dict", lambda self, **options: state)
    model = load_model("squeezenet1_1")
    assert not model.training and len(model.categories) == 1000
    assert torch.equal(model.classifier[1].weight, state["classifier.1.weight"])
    assert {"resnet34", "convnext_tiny", "vit_b_16"} <= set(classifiers())


@pytest.mark.parametrize("name", ["googlenet", "inception_v3", "efficientnet_v2_l"])
def test_a_classifier_trained_on_other_colours_gets_them(name: str, monkeypatch: pytest.MonkeyPatch):
    seen = []

    class Network(nn.Conv2d):
        def __init__(self, **options: object) -> None:
            super().__init__(3, 3, 1)
            seen.append(options)

    monkeypatch.setattr(torchvision_models, "get_model", lambda name, **options: Network(**options))
    state = nn.Conv2d(3, 3, 1).state_dict()
    monkeypatch.setattr(
        torchvision_models.get_model_weights(name), "get_state_dict", lambda self, **options: state
    )
    model: Any = load_model(name)
    if name != "efficientnet_v2_l":  # torchvision turns the colours round inside of these two
        assert seen[0]["transform_input"] is True
        return
    x = torch.randn(2, 3, 8, 8)
    colours = x * torch.tensor(IMAGENET_STD).view(3, 1, 1) + torch.tensor(IMAGENET_MEAN).view(3, 1, 1)
    torch.testing.assert_close(model(x), model.network((colours - 0.5) / 0.5))
    assert len(model.categories) == 1000


def test_a_transformer_is_made_for_the_size_of_its_weights():
    assert models._options("vit_h_14", torchvision_models.ViT_H_14_Weights.DEFAULT) == {"image_size": 518}


class FakeTimm(ModuleType):
    """What :func:`load_model` asks of timm; ``mean`` and ``std`` are those that its network expects."""

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__("timm")
        self.mean, self.std = mean, std

    def is_model(self, name: str) -> bool:
        return name in ("tiny", "tiny.in1k")

    def create_model(self, name: str, pretrained: bool) -> nn.Module:
        assert pretrained
        model: Any = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 1000))
        model.pretrained_cfg = {"mean": self.mean, "std": self.std}
        model.num_classes = 1000
        return model


def test_a_network_of_timms_gets_the_pictures_it_was_trained_on(monkeypatch: pytest.MonkeyPatch):
    x = torch.randn(2, 3, 8, 8)
    monkeypatch.setitem(sys.modules, "timm", FakeTimm((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)))
    model: Any = load_model("timm/tiny")
    colours = x * torch.tensor(IMAGENET_STD).view(3, 1, 1) + torch.tensor(IMAGENET_MEAN).view(3, 1, 1)
    torch.testing.assert_close(model(x), model.network((colours - 0.5) / 0.5))
    assert not model.training and model.categories[281] == "tabby"
    monkeypatch.setitem(sys.modules, "timm", FakeTimm(IMAGENET_MEAN, IMAGENET_STD))
    assert isinstance(load_model("timm/tiny"), nn.Sequential)  # as it is: its layers keep their names
    assert isinstance(load_model("timm/tiny.in1k"), nn.Sequential)  # with the name of the weights


def test_what_timm_cannot_give_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch):
    timm = FakeTimm(IMAGENET_MEAN, IMAGENET_STD)
    monkeypatch.setitem(sys.modules, "timm", timm)
    with pytest.raises(ValueError, match="^unknown model 'timm/magic'"):
        load_model("timm/magic")

    def fail(name: str, pretrained: bool) -> nn.Module:
        raise OSError("no\nnetwork")

    monkeypatch.setattr(timm, "create_model", fail)
    with pytest.raises(
        RuntimeError, match=r"^the weights of timm/tiny could not be downloaded \(no network\); "
    ):
        load_model("timm/tiny")
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ModuleNotFoundError, match="pip install timm"):
        load_model("timm/tiny")
