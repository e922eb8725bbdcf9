"""What other libraries offer for the same runs; where one is not installed, a line says so."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

import smoothsal_lib as sal
from benchmarks import ours
from benchmarks.case import Case, Contender, Maps, off


def _attribute(case: Case, attribution: Callable[[nn.Module], Any], **options: Any) -> Maps:
    """One of captum's attributions, layer by layer, which is how it is offered."""
    return {
        name: attribution(case.model.get_submodule(name)).attribute(case.x, target=case.target, **options).detach()
        for name in case.layers
    }


class _Rectifiers(nn.Module):
    """Stands for a ReLU module that a block calls twice, with a module for either call."""

    def __init__(self) -> None:
        super().__init__()
        self.both = nn.ModuleList([nn.ReLU(), nn.ReLU()])
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.both[self.calls % 2](x)


def with_rectifiers_apart(model: nn.Module) -> nn.Module:
    """A copy of a ResNet in which no ReLU module is used twice, so that captum's DeepLift accepts it."""
    model = copy.deepcopy(model)
    for block in list(model.modules()):
        if hasattr(block, "conv2") and isinstance(getattr(block, "relu", None), nn.ReLU):
            block.relu = _Rectifiers()
    return model


def _captum() -> list[Contender]:
    attr = import_module("captum.attr")

    def gradients(case: Case) -> Maps:
        return _attribute(
            case, lambda layer: attr.LayerGradientXActivation(case.model, layer, multiply_by_inputs=False)
        )

    def grad_cam(case: Case) -> Maps:
        return _attribute(case, lambda layer: attr.LayerGradCam(case.model, layer), relu_attributions=True)

    def deeplift(case: Case) -> Maps:
        # The copy is made in the call, as it would have to be; it takes no time beside the passes.
        apart = with_rectifiers_apart(case.model)
        return {
            name: attr.LayerDeepLift(apart, apart.get_submodule(name))
            .attribute(case.x, torch.zeros_like(case.x), target=case.target)
            .detach()
            for name in case.layers
        }

    def conductance(case: Case, steps: int) -> Maps:
        return _attribute(
            case,
            lambda layer: attr.LayerConductance(case.model, layer),
            baselines=torch.zeros_like(case.x),
            n_steps=steps,
            method="riemann_trapezoid",
        )

    def smoothgrad(case: Case, looks: int, spread: float) -> Maps:
        return _attribute(
            case,
            lambda layer: attr.NoiseTunnel(attr.LayerGradientXActivation(case.model, layer, multiply_by_inputs=False)),
            nt_samples=looks,
            nt_samples_batch_size=min(looks, case.smoothgrad.batch),
            stdevs=spread,
        )

    def refusal(case: Case) -> str:
        """What captum's DeepLift says to the network as it is."""
        layer = case.model.get_submodule(case.layers[0])
        try:
            attr.LayerDeepLift(case.model, layer).attribute(case.x, torch.zeros_like(case.x), target=case.target)
        except (RuntimeError, AssertionError):  # depending on the version
            return "refuses this network; here a copy with a ReLU module for each call"
        return "a copy with a ReLU module for each call"

    who, by_layer = "captum", "layer by layer"
    return [
        Contender(
            "gradient", who, gradients, lambda case: off(gradients(case), ours.explain(case, "gradient")), "ours", 1e-4,
            note=by_layer,
        ),
        Contender(
            "Grad-CAM", who, grad_cam, lambda case: off(grad_cam(case), ours.explain(case, "grad_cam")), "ours", 1e-3,
            note=by_layer,
        ),
        Contender(
            "DeepLift", who, deeplift, lambda case: off(deeplift(case), ours.explain(case, "deeplift")), "ours", 1e-2,
            note=refusal,
        ),
        Contender(
            "integrated gradients",
            who,
            lambda case: conductance(case, case.steps // 4),
            lambda case: off(conductance(case, 4), ours.conductance(case, 4, left=True)),
            "autograd, a pass for each layer",
            1e-3,
            note="left sums; a quarter of the steps, times 4",
            share=0.25,
        ),
        Contender(
            "SmoothGrad",
            who,
            lambda case: smoothgrad(case, case.looks // 10, float(case.smoothgrad.spread(case.x).mean())),
            lambda case: off(smoothgrad(case, 2, 0.0), ours.explain(case, "gradient")),
            "ours, both without noise",
            1e-4,
            note="noise of its own; a tenth of the looks, times 10",
            share=0.1,
        ),
    ]  # fmt: skip


def _grad_cam() -> list[Contender]:
    package, image = import_module("pytorch_grad_cam"), import_module("pytorch_grad_cam.utils.image")
    targets = import_module("pytorch_grad_cam.utils.model_targets")

    def maps(case: Case) -> list[Any]:
        layers = [case.model.get_submodule(name) for name in case.layers]
        with package.GradCAM(case.model, layers) as cam:
            kept = []
            joined = cam.aggregate_multi_layers
            cam.aggregate_multi_layers = lambda each: (kept.extend(each), joined(each))[1]
            cam(case.x, [targets.ClassifierOutputTarget(int(c)) for c in case.target])
        case.model.zero_grad()  # it leaves gradients in the parameters
        return kept

    def error(case: Case) -> float:
        size = case.x.shape[3], case.x.shape[2]
        found = {name: torch.from_numpy(each[:, 0]) for name, each in zip(case.layers, maps(case), strict=True)}
        library = ours.explain(case, "grad_cam")
        scaled = {name: image.scale_cam_image(each[:, 0].cpu().numpy(), size) for name, each in library.items()}
        return off(found, {name: torch.from_numpy(each) for name, each in scaled.items()})

    return [
        Contender(
            "Grad-CAM", "pytorch-grad-cam", maps, error, "ours, scaled as it scales", 1e-2,
            note="enlarged and scaled; gradients of parameters, too",
        )
    ]  # fmt: skip


@dataclass(frozen=True)
class _Given:
    """An extractor for torch-cam's measure that has its map already."""

    model: nn.Module
    map: Tensor

    def __call__(self, *args: Any, **kwargs: Any) -> list[Tensor]:
        return [self.map]

    def fuse_cams(self, cams: list[Tensor]) -> Tensor:
        return cams[0]

    def _hooks_off(self) -> AbstractContextManager[None]:
        return nullcontext()


def _torchcam() -> list[Contender]:
    methods, metrics = import_module("torchcam.methods"), import_module("torchcam.metrics")

    def grad_cam(case: Case) -> Maps:
        with methods.GradCAM(case.model, list(case.layers)) as extractor:
            scores = case.model(case.x)
            maps = extractor(case.target.tolist(), scores, normalized=False)
        return {name: each[:, None] for name, each in zip(case.layers, maps, strict=True)}

    def areas(case: Case) -> Tensor:
        metric = metrics.DeletionInsertionMetric(
            _Given(case.model, case.map), lambda logits: logits.softmax(1), steps=case.points, batch_size=case.points
        )
        metric.update(case.x, case.target.tolist())
        return torch.tensor([metric.summary()[f"{name}_auc"] for name in ("insertion", "deletion")])

    def areas_error(case: Case) -> float:
        library = [
            curve(case.model, case.x, case.map, case.target, case.points, "zero").auc.mean()
            for curve in (sal.insertion, sal.deletion)
        ]
        return off(areas(case), torch.stack(library).cpu())

    return [
        Contender(
            "Grad-CAM", "torch-cam", grad_cam, lambda case: off(grad_cam(case), ours.explain(case, "grad_cam")), "ours",
            1e-3, note="all layers at once, as ours",
        ),
        Contender(
            "insertion and deletion", "torch-cam", areas, areas_error, "ours, one baseline", 1e-3,
            note="one baseline for both",
        ),
    ]  # fmt: skip


def _quantus() -> list[Contender]:
    quantus = import_module("quantus")

    def scores(case: Case) -> Tensor:
        height, width = case.x.shape[2:]
        flipping = quantus.PixelFlipping(
            features_in_step=height * width // case.points,
            normalise=False,
            perturb_baseline=0.0,
            disable_warnings=True,
            display_progressbar=False,
        )
        found = flipping(
            case.model,
            case.x.cpu().numpy(),
            case.target.cpu().numpy(),
            case.map[:, None].cpu().numpy(),
            softmax=True,
            device=str(case.x.device),
        )
        return torch.tensor(found)

    def error(case: Case) -> float:
        library = sal.deletion(case.model, case.x, case.map, case.target, case.points).scores
        # It counts the values of the channels one by one, so that three of its steps are one of ours.
        channels = case.x.shape[1]
        return off(scores(case)[:, channels - 1 :: channels], library[:, 1:].cpu())

    return [
        Contender(
            "insertion and deletion", "Quantus", scores, error, "ours, deletion", 1e-3,
            note="deletion only, in 84 steps: channels apart",
        )
    ]  # fmt: skip


PEERS = {"captum": _captum, "pytorch-grad-cam": _grad_cam, "torch-cam": _torchcam, "Quantus": _quantus}


def contenders() -> tuple[list[Contender], list[str]]:
    """The peers' part in the runs, and a line for every peer that cannot be imported."""
    found: list[Contender] = []
    missing: list[str] = []
    for name, make in PEERS.items():
        try:
            found += make()
        except ImportError as error:
            missing.append(f"{name} has no rows: {error}")
    return found, missing
