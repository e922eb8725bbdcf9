"""Every check accepts the right answer in all its forms, and none of the plausible wrong ones."""

from contextlib import contextmanager, suppress
from copy import copy, deepcopy
from itertools import pairwise

import numpy as np
import pytest
import torch
import torchvision

import smoothsal_lib as sal
from smoothsal_lib import exercises
from smoothsal_lib.filters import low_pass
from smoothsal_lib.fixes.blur import centred_blur, cyclic_mean
from smoothsal_lib.models import normalize


def displacement(blur, axis=2):
    impulse = torch.zeros(1, 1, 9, 9)
    impulse[0, 0, 4, 4] = 1
    rows = torch.arange(9.0).view(9, 1) if axis == 2 else torch.arange(9.0).view(1, 9)
    out = blur(impulse)[0, 0]
    return (out * rows).sum() / out.sum() - 4


def mean_of_shifts(g):
    return sum(torch.roll(g, (dy, dx), (2, 3)) for dy in (0, 1) for dx in (0, 1)) / 4


def gap(A, A_star, x, y):
    return (A(x) * y).sum() - (x * A_star(y)).sum()


def contrast(gradient, stride=2):
    size = gradient.abs().mean((0, 1))
    means = [size[r::stride, c::stride].mean() for r in range(stride) for c in range(stride)]
    return max(means) / min(means)


def last_gradient(share=True):
    model = sal.load_model("tiny_resnet")
    x, _ = sal.load_photo("chelsea")
    row = model.fc.weight[model(x).argmax()].detach()
    return row / sal.hidden_layers(model, x)["layer4.1"].shape[1] ** 2 if share else row


def multiplier(f, z, z_ref):
    tangent = torch.autograd.functional.vjp(f, z, torch.ones_like(z))[1]
    return torch.where(z == z_ref, tangent, (f(z) - f(z_ref)) / (z - z_ref))


def along_the_way(f, x, baseline, steps, progress=None, middle=0.5):
    total = torch.zeros_like(x)
    for step in range(steps):
        point = (baseline + (step + middle) / steps * (x - baseline)).requires_grad_()
        total += torch.autograd.grad(f(point).sum(), point)[0] / steps
    return total * (x - baseline if progress is None else progress)


def fitted(layer="features.1.block.0.0"):
    """A network and a surrogate that has seen some pictures."""
    network = own("mobilenet_v3_small")
    photos = torch.cat([sal.load_photo(name, size=192)[0] for name in sal.photo_names()])
    crops = photos.unfold(2, 64, 64).unfold(3, 64, 64).permute(0, 2, 3, 1, 4, 5).flatten(0, 2)
    return network, sal.fit_surrogate(network, crops, layers=[layer], epochs=0, progress=False)


def hook_of(blur=mean_of_shifts, before=True):
    """What hangs a blur of the gradient on a strided convolution."""

    def pre_hook(module, inputs):
        own = inputs[0].view_as(inputs[0])
        own.register_hook(blur)
        return (own,)

    def backward_hook(module, grad_input, grad_output):
        return (blur(grad_input[0]),)

    return lambda layer: (
        layer.register_forward_pre_hook(pre_hook) if before else layer.register_full_backward_hook(backward_hook)
    )


def hanging(hang, remove=True, always=True):
    """A context manager that hangs hooks on all strided convolutions and may take them off."""

    @contextmanager
    def manager(model):
        hooks = [hang(layer) for layer in sal.strided_layers(model).values()]
        try:
            yield model
        except Exception:
            if not always:
                hooks.clear()
            raise
        finally:
            for hook in hooks if remove else []:
                hook.remove()

    return manager


@contextmanager
def swallowing(model):
    with suppress(Exception), hanging(hook_of())(model):
        yield


@contextmanager
def outspoken(model):
    """Blurs the gradient as it should, and moves the logits."""
    hook = model.register_forward_hook(lambda module, inputs, output: output + 1)
    with hanging(hook_of())(model):
        yield
    hook.remove()


class Blurred(torch.nn.Module):
    def __init__(self, conv, blur=centred_blur):
        super().__init__()
        self.conv, self.blur = conv, blur

    def forward(self, x):
        return self.conv(self.blur(x, self.conv.stride))


def anti_aliased(network, skip=1, blur=centred_blur, duplicate=deepcopy):
    changed = duplicate(network)
    for name in list(sal.strided_layers(changed))[skip:]:
        parent, _, child = name.rpartition(".")
        setattr(changed.get_submodule(parent), child, Blurred(changed.get_submodule(name), blur))
    return network, changed


def second(names, key):
    return sorted(names, key=key)[-2]


def most_gridded(model, x, room=4, best=max):
    before, after = (sal.explain(model, x, method="gradient", fix=fix) for fix in (None, "backward"))
    energy = {n: sal.checkerboard_energy(a).item() for n, a in before.items() if min(a.shape[2:]) >= room}
    name = best(energy, key=energy.get)
    return name, 1 - sal.checkerboard_energy(after[name]).item() / energy[name]


def plant(a, share, variance=True):
    board = 1.0 - 2 * ((torch.arange(a.shape[2])[:, None] + torch.arange(a.shape[3])) % 2)
    v = a.var((1, 2, 3), keepdim=True) if variance else 1
    return a + (share / (1 - share) * v) ** 0.5 * board


def spearman(a, b):
    ranks = torch.stack([one.flatten().argsort().argsort().double() for one in (a, b)])
    return torch.corrcoef(ranks)[0, 1]


def place(m, stride, offset):
    rows, columns = (offset + stride * torch.arange(n) for n in m.shape)
    return (m * rows[:, None]).sum() / m.sum(), (m * columns).sum() / m.sum()


def two_classes():
    """A small network of the reader's."""
    torch.manual_seed(0)
    first, second = torch.nn.Conv2d(3, 8, 3, 2, 1), torch.nn.Conv2d(8, 8, 3, 2, 1)
    pool, last = torch.nn.AdaptiveAvgPool2d(1), torch.nn.Linear(8, 2)
    return torch.nn.Sequential(first, torch.nn.ReLU(), second, torch.nn.ReLU(), pool, torch.nn.Flatten(), last)


def pooled():
    """A network with a layer between its only strided convolution and a pooling."""
    layers = [torch.nn.Conv2d(3, 4, 3, 2), torch.nn.ReLU(), torch.nn.MaxPool2d(2), torch.nn.Conv2d(4, 4, 3)]
    return torch.nn.Sequential(*layers, torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(4, 2))


def spoilt(network):
    """The same network, its first convolutions as good as new."""
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.normal_(module.weight)
    return network


def area(model, x, saliency, target):
    return sal.deletion(model, x, saliency[None], target, steps=7).auc


def lead(model, x, saliency, target, floor=None):
    size = saliency.shape if floor is None else floor
    random = [area(model, x, torch.randn(size), target) for _ in range(10)]
    return (sum(random) / 10 - area(model, x, saliency, target)).item()


def chance(box, size, tolerance, power=2):
    x_min, y_min, x_max, y_max = box
    rows, columns = torch.arange(size[0])[:, None], torch.arange(size[1])
    below = torch.maximum(y_min - rows, rows - y_max).clamp(min=0)
    beside = torch.maximum(x_min - columns, columns - x_max).clamp(min=0)
    distance = (below**2 + beside**2).sqrt() if power == 2 else torch.maximum(below, beside)
    return (distance <= tolerance).double().mean()


def unit_field(model, x, layer, unit, size=torch.abs):
    kept = []
    hook = model.get_submodule(layer).register_forward_hook(lambda module, args, output: kept.append(output))
    image = x.clone().requires_grad_()
    model(image)
    hook.remove()
    channels = kept[0][0, :, unit[0], unit[1]]
    return sum(size(torch.autograd.grad(one, image, retain_graph=True)[0][0]).mean(0) for one in channels)


def middle(*arguments, **options):
    return place(unit_field(*arguments, **options), 1, 0)


def looks(model, x, noise, agreement, n=10, proportional=False):
    target = model(x).argmax(1)
    means = [
        sal.explain(model, x, target, "input", "gradient", None, sampling=sal.sampling.SmoothGrad(n, noise, seed))
        for seed in (5, 6)
    ]
    r = torch.corrcoef(torch.stack([mean["input"].flatten() for mean in means]))[0, 1].item()
    if proportional:
        return n * agreement / r
    single = r / (n - (n - 1) * r)
    return agreement * (1 - single) / (single * (1 - agreement))


def smoothgrad_of(f, x, sigma, n, seed):
    generator = torch.Generator().manual_seed(seed)
    total = torch.zeros_like(x)
    for _ in range(n):
        look = (x + sigma * torch.randn(x.shape, generator=generator)).requires_grad_()
        total += torch.autograd.grad(f(look), look)[0]
    return total / n


def positive_norm(g, x):
    both_up = g.clamp(min=0).square().sum(1) * x.clamp(min=0).square().sum(1)
    both_down = g.clamp(max=0).square().sum(1) * x.clamp(max=0).square().sum(1)
    return (both_up + both_down).sqrt()


class Made:
    """An answer that is made when its test runs, because it needs a network."""

    def __init__(self, make):
        self.make = make

    def __repr__(self):
        return "made"


def own(name="tiny_resnet"):
    """A network that the reader may have."""
    torch.manual_seed(0)
    return sal.load_model(name) if "tiny" in name or "tissue" in name else getattr(torchvision.models, name)()


def plain():
    """One without strides and shortcuts."""
    convolutions = [torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, 8, 3), torch.nn.ReLU()]
    return torch.nn.Sequential(*convolutions, torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(8, 2))


def disjoint():
    """One whose last kernel is as large as its stride, so that each parity class has one tap, all of about one size."""
    torch.manual_seed(0)
    strided = [torch.nn.Conv2d(8, 256, 3, 2), torch.nn.Conv2d(256, 8, 2, 2)]
    convolutions = [torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), *strided]
    return torch.nn.Sequential(*convolutions, torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(8, 2))


def blind():
    """One whose second convolution looks at nothing."""
    network = plain()
    torch.nn.init.zeros_(network[2].weight)
    torch.nn.init.ones_(network[2].bias)
    return network


def cat():
    return sal.load_photo("chelsea", size=64)[0]


def strip(width=1024):
    """Photographs side by side."""
    photos = [sal.load_photo(name, size=64)[0] for name in sal.photo_names()]
    return torch.cat(photos * 4, 3)[..., :width]


def barred(network=None, target=36, rows=6):
    """Photographs with and without a green bar."""
    photos = torch.cat([sal.load_photo(name, size=64)[0] for name in sal.photo_names()])
    bars = photos.clone()
    bars[:, :, 28 : 28 + rows] = torch.tensor([-2.0, 2.0, -2.0]).view(3, 1, 1)
    return network or own(), photos, bars, target


def jump(model, images, marked):
    return (model(marked) - model(images)).mean()


def variation(a):
    return sal.total_variation(a[None, None])


def as_smooth(rough, smooth, variation=variation):
    narrow, wide = 0.0, 8.0
    while wide - narrow > 0.01:
        sigma = (narrow + wide) / 2
        still_rough = variation(low_pass(rough, 0.187 / sigma)) > variation(smooth)
        narrow, wide = (sigma, wide) if still_rough else (narrow, sigma)
    return wide


def blend(left, right):
    weight = torch.linspace(0, 1, left.shape[1])
    return (1 - weight) * left + weight * right


def rank(saliency, labels, statistic=torch.mean, background=False):
    names = [one for one in labels.unique().tolist() if one or background]
    return sorted(names, key=lambda one: -statistic(saliency[labels == one]))


def prepared(photo):
    return normalize(torch.as_tensor(photo).permute(2, 0, 1)[None] / 255)


def shrinks(model, x):
    strides = {"input": 1} | {name: max(layer.stride) for name, layer in sal.hidden_layers(model, x).items()}
    return [name for before, name in pairwise(strides) if strides[name] > strides[before]]


class Answering(torch.nn.Module):
    """Makes a network that returns scores of one that returns probabilities in a dictionary."""

    def __init__(self, model, score):
        super().__init__()
        self.model, self.score = model, score

    def forward(self, x):
        return self.score(self.model(x)["out"])


def scored(score):
    return lambda model: Answering(model, score)


RIGHT = [
    ("1_1", 9),
    ("1_1", "9"),
    ("1_1", [9]),
    ("1_2", contrast),
    ("1_2", lambda gradient, stride: contrast(gradient, stride).item()),
    ("1_3", {"stride": 2.4, "max": 1.02, "average": 1.0}),
    ("1_3", {"average": torch.tensor(1.0), "max": torch.tensor(1.1), "stride": torch.tensor(1.8)}),
    ("1_3", {"average": np.float32(1), "max": [1.1], "stride": "1.8"}),
    ("1_4", Made(lambda: {"network": own(), "gridded": "layer2.1", "clean": "layer4.0"})),
    ("1_4", Made(lambda: {"network": own("resnet18"), "gridded": "relu", "clean": "layer4.1"})),
    ("1_4", Made(lambda: {"network": own("squeezenet1_1"), "gridded": "features.4", "clean": "classifier.2"})),
    ("2_1", Made(last_gradient)),
    ("2_1", Made(lambda: last_gradient().tolist())),
    ("2_1", Made(lambda: last_gradient().numpy().reshape(1, -1, 1, 1))),
    ("2_2", multiplier),
    ("2_2", lambda *a: multiplier(*a).tolist()),
    ("2_3", {"gradient", "gradient_x_activation", "deeplift", "integrated_gradients"}),
    ("2_3", ["integrated_gradients", "deeplift", "gradient_x_activation", "gradient"]),
    ("2_3", "gradient, gradient_x_activation, deeplift, integrated_gradients"),
    ("2_3", np.array(["gradient", "gradient_x_activation", "deeplift", "integrated_gradients"])),
    ("2_4", along_the_way),
    ("2_4", lambda *a: along_the_way(*a, middle=0)),
    ("2_4", lambda *a: along_the_way(*a, middle=1).float().numpy()),
    ("2_5", Made(lambda: {"network": own(), "everything": "layer2", "bypassed": "layer2.1.conv1"})),
    ("2_5", Made(lambda: {"network": own("resnet18"), "everything": "maxpool", "bypassed": "layer4.0.downsample"})),
    # What follows its layer features.0.1 works in place.
    (
        "2_5",
        Made(lambda: dict(network=own("mobilenet_v3_small"), everything="features.0.1", bypassed="features.3.block")),
    ),
    ("3_1", [2, 2, 1]),
    ("3_1", torch.tensor([2, 2, 1])),
    ("3_2", [1, 2, 1]),
    ("3_2", (0.3, 0.1, -0.2)),
    ("3_3", 0.25),
    ("3_3", "0.25"),
    ("3_3", torch.tensor(0.25)),
    ("3_4", [4, 1]),
    ("3_4", (3.88, torch.tensor(1.01))),
    ("3_4", np.array([4.0, 1.0])),
    ("3_5", Made(lambda: {"network": own(), "period": 16})),
    ("3_5", Made(lambda: {"network": own("resnet18"), "period": (32, 32)})),
    ("3_5", Made(lambda: {"network": own("squeezenet1_1"), "period": torch.tensor(16)})),
    ("4_1", 322_880),
    ("4_2", "a"),
    ("4_2", ["A"]),
    ("4_3", lambda before, after, x: after(torch.nn.functional.avg_pool2d(before(x), 2))),
    ("4_3", lambda before, after, x: after(sum(before(x)[..., i::2, j::2] for i in (0, 1) for j in (0, 1)) / 4)),
    ("4_3", lambda before, after, x: after(torch.nn.functional.avg_pool2d(before(x), 2)).numpy()),
    ("4_4", 0.075**0.5),
    ("4_4", "0.27"),
    ("4_4", np.array([0.274])),
    ("4_5", Made(fitted)),
    ("4_5", Made(lambda: list(fitted("features.4.block.1.0")))),
    ("5_1", 7.5),
    ("5_1", -7.5),
    ("5_1", np.float32(7.5)),
    ("5_2", [1 / 12, 1 / 6, 1 / 6, 1 / 6, 1 / 6, 1 / 6, 1 / 12]),
    ("5_2", torch.tensor([1, 2, 2, 2, 2, 2, 1]) / 12),
    ("5_3", displacement),
    ("5_3", lambda blur: displacement(blur).item()),
    ("5_4", hanging(hook_of())),
    ("5_4", hanging(hook_of(lambda g: centred_blur(g, (2, 2))))),
    ("5_4", lambda model: sal.smoothed(model, "backward")),
    ("5_5", Made(lambda: (own("resnet18"), ["layer4.0", "layer4.1"]))),
    ("5_5", Made(lambda: [own().train(), {"layer4.0": 1, "layer4.1": 2}])),
    ("5_5", Made(lambda: (two_classes(), "3"))),
    ("5_5", Made(lambda: (pooled(), "1, 2, 3"))),
    ("6_1", [32, 9]),
    ("6_1", np.array([32, 9])),
    ("6_2", gap),
    ("6_2", lambda *a: gap(*a).abs()),
    ("6_2", lambda *a: gap(*a).numpy()),
    ("6_3", "Both"),
    ("6_3", {"input", "hidden"}),
    ("6_4", "abd"),
    ("6_4", ["d", "a", "b"]),
    ("6_4", "A, B and D".replace(" and", "")),
    ("6_5", Made(lambda: anti_aliased(own()))),
    ("6_5", Made(lambda: list(anti_aliased(own("resnet18").train())))),
    ("6_5", Made(lambda: anti_aliased(two_classes()))),
    ("7_1", 4),
    ("7_1", torch.tensor(4.0)),
    ("7_2", 0.2),
    ("7_3", plant),
    ("7_3", lambda a, share: -plant(a, share)),
    ("7_3", lambda a, share: plant(a, share).numpy()),
    ("7_4", [1.98, 0]),
    ("7_4", (1.98, 1e-9)),
    ("7_4", torch.tensor([1.98, 0.0])),
    ("7_5", Made(lambda: (most_gridded, own("resnet18")))),
    ("7_5", Made(lambda: [lambda *a: np.array(most_gridded(*a), object).tolist(), two_classes()])),
    ("8_1", 0.525),
    ("8_2", ["a", "b", "d"]),
    ("8_2", "B, D, A"),
    ("8_2", "a, b and d"),
    ("8_3", (6, 12)),
    ("8_3", torch.tensor([6.0, 12.0])),
    ("8_4", spearman),
    ("8_4", lambda a, b: spearman(a, b).item()),
    ("8_4", lambda a, b: spearman(a, b).numpy()),
    ("8_5", Made(lambda: (lead, two_classes()))),
    ("8_5", Made(lambda: [lambda *a: torch.tensor([lead(*a)]), own("mobilenet_v3_small")])),
    ("9_1", 3.5),
    ("9_1", -3.5),
    ("9_2", 0.6),
    ("9_3", place),
    ("9_2", np.array(0.6)),
    ("9_3", lambda *a: torch.stack(place(*a))),
    ("9_3", lambda *a: np.array(place(*a))),
    ("9_4", chance),
    ("9_4", lambda *a: chance(*a).item()),
    ("9_5", Made(lambda: (middle, two_classes()))),
    ("9_5", Made(lambda: [lambda *a: torch.stack(middle(*a)), own("mobilenet_v3_small")])),
    ("10_1", 90),
    ("10_1", torch.tensor(90.0)),
    ("10_2", (0.1, 0.9)),
    ("10_2", np.array([0.1, 0.9])),
    ("10_3", 0.1587),
    ("10_3", "0.16"),
    ("10_4", smoothgrad_of),
    ("10_4", lambda *a: smoothgrad_of(*a).numpy()),
    ("10_5", Made(lambda: (looks, two_classes()))),
    ("10_5", Made(lambda: (lambda *a: round(looks(*a)), two_classes()))),
    ("10_5", Made(lambda: [looks, own("mobilenet_v3_small")])),
    ("11_1", (589_824, 10)),
    ("11_1", np.array([589_824, 10])),
    ("11_2", (1.19, 1)),
    ("11_2", torch.tensor([2**0.25, 1.0], dtype=torch.float64)),
    ("11_3", positive_norm),
    ("11_3", lambda g, x: positive_norm(g, x).numpy()),
    ("11_4", Made(lambda: (own(), "layer4.1"))),
    ("11_4", Made(lambda: [(network := own("resnet18")), network.layer4])),
    ("11_5", Made(lambda: (own(), cat(), 0.02))),
    ("11_5", Made(lambda: [own(), cat(), torch.tensor([0.02])])),
    ("11_5", Made(lambda: (own("resnet18"), cat(), np.float64(0.00512)))),
    ("12_1", 2.5),
    ("12_1", "2.5"),
    ("12_2", 5 / 6),
    ("12_2", 0.833),
    ("12_3", jump),
    ("12_3", lambda *a: jump(*a).item()),
    ("12_3", lambda *a: jump(*a).numpy()),
    ("12_4", as_smooth),
    ("12_4", lambda *a: torch.tensor([as_smooth(*a)])),
    ("12_5", Made(barred)),
    ("12_5", Made(lambda: list(barred(target=torch.tensor(36))))),
    ("12_5", Made(lambda: barred(own("resnet18"), 128))),
    ("12_5", Made(lambda: barred(target=[36]))),
    ("13_1", 0.1),
    ("13_1", 10),
    ("13_2", 112),
    ("13_3", blend),
    ("13_3", lambda left, right: torch.lerp(left, right, torch.linspace(0, 1, left.shape[1]))),
    ("13_3", lambda left, right: blend(left, right).numpy()),
    ("13_4", rank),
    ("13_4", lambda *a: tuple(rank(*a))),
    ("13_4", lambda *a: torch.tensor(rank(*a))),
    ("13_4", lambda *a: np.array(rank(*a))),
    ("13_5", Made(lambda: (own(), strip(), "layer2.1", 140))),
    ("13_5", Made(lambda: [own(), strip(), "layer2.1", torch.tensor([230.0])])),
    ("13_5", Made(lambda: (own("resnet18"), strip(), "layer2.1", 350))),
    ("14_1", [16, 3]),
    ("14_1", torch.tensor([16.0, 3.0])),
    ("14_1", np.array([16, 3])),
    ("14_2", prepared),
    ("14_2", lambda photo: prepared(photo).double()),
    ("14_3", shrinks),
    ("14_3", lambda *a: tuple(shrinks(*a))),
    ("14_3", lambda *a: dict.fromkeys(shrinks(*a))),
    ("14_3", lambda *a: set(shrinks(*a))),
    ("14_4", scored(lambda p: p.log() - p.log().mean(1, keepdim=True))),
    ("14_4", scored(lambda p: p.clamp(min=1e-30).log() - p.clamp(min=1e-30).log().mean(1, keepdim=True))),
    ("14_4", scored(torch.logit)),
    ("14_5", {"network": own(), "changed": "layer2.1", "unchanged": "layer4.0"}),
    ("14_5", {"network": own(), "changed": "input", "unchanged": "layer4.1.conv2"}),
    ("14_5", {"network": own("mobilenet_v3_small"), "changed": "features.0", "unchanged": "features.12"}),
    ("14_5", {"network": (given := own()), "changed": given.layer2[1], "unchanged": given.layer4}),
]
WRONG = [
    ("1_1", 4),
    ("1_1", 3),
    ("1_1", "nine"),
    ("1_2", lambda gradient, stride: 1 / contrast(gradient, stride)),
    ("1_2", lambda gradient, stride: contrast(gradient, 2)),
    ("1_2", lambda gradient, stride: contrast(gradient.mean(1, keepdim=True), stride)),
    ("1_2", lambda gradient, stride: None),
    ("1_2", lambda gradient, stride: float("nan")),
    ("1_2", lambda gradient: contrast(gradient)),
    ("1_2", 2.0),
    ("1_3", 2.0),
    ("1_3", {"stride": 2.4, "max": 1.02}),
    ("1_3", {"stride": 2.4, "max": 2.2, "average": 1.0}),
    ("1_3", {"stride": 1.0, "max": 1.0, "average": 1.0}),
    ("1_3", {"stride": 2.4, "max": 0.9, "average": 1.0}),
    ("1_3", {"stride": "much", "max": 1.0, "average": 1.0}),
    ("1_3", {"stride": float("nan"), "max": 1.0, "average": 1.0}),
    ("1_4", Made(lambda: {"network": own(), "gridded": "layer4.0", "clean": "layer4.1"})),
    ("1_4", Made(lambda: {"network": own(), "gridded": "layer2.1", "clean": "layer3.1"})),
    ("1_4", Made(lambda: {"network": own(), "gridded": "layer2.1", "clean": "fc"})),
    ("1_4", Made(lambda: {"network": own(), "gridded": "layer2.1", "clean": "layer5"})),
    ("1_4", Made(lambda: {"network": own(), "gridded": 2.1, "clean": "layer4.1"})),
    ("1_4", Made(lambda: {"network": disjoint(), "gridded": "1", "clean": "2"})),
    ("1_4", Made(lambda: {"network": plain(), "gridded": "0", "clean": "3"})),
    ("1_4", {"network": "resnet18", "gridded": "layer2.1", "clean": "layer4.1"}),
    ("1_4", {"network": torch.nn.Linear(3, 2), "gridded": "layer2.1", "clean": "layer4.1"}),
    ("1_4", "layer2.1"),
    ("2_1", Made(lambda: last_gradient(share=False))),
    ("2_1", Made(lambda: last_gradient().flip(0))),
    ("2_1", Made(lambda: torch.full_like(last_gradient(), torch.nan))),
    ("2_1", [1.0, 2.0]),
    ("2_2", lambda f, z, z_ref: (f(z) - f(z_ref)) / (z - z_ref)),
    ("2_2", lambda f, z, z_ref: torch.autograd.functional.vjp(f, z, torch.ones_like(z))[1]),
    ("2_2", lambda f, z, z_ref: ((f(z) - f(z_ref)) / (z - z_ref)).nan_to_num(0)),
    ("2_2", lambda f, z, z_ref: 1.0),
    ("2_2", lambda f, z: f(z) / z),
    ("2_2", "rescale"),
    ("2_3", {"gradient"}),
    ("2_3", {"gradient", "gradient_x_activation", "deeplift", "integrated_gradients", "grad_cam"}),
    ("2_3", {"gradients"}),
    ("2_3", 4),
    ("2_3", [["gradient"], ["deeplift"]]),
    ("2_3", torch.tensor(4)),
    ("2_4", lambda f, x, baseline, steps: along_the_way(f, x, x - 1e-9, 1, x - baseline)),
    ("2_4", lambda *a: along_the_way(*a, progress=1)),
    ("2_4", lambda f, x, baseline, steps: along_the_way(f, x, baseline, steps, x)),
    ("2_4", lambda f, x, baseline, steps: along_the_way(f, x, 0 * x, steps)),
    ("2_4", lambda f, x, baseline, steps: steps * along_the_way(f, x, baseline, steps)),
    ("2_4", lambda f, x, baseline, steps: f(x) - f(baseline)),
    ("2_4", lambda f, x, baseline, steps: torch.full_like(x, torch.nan)),
    ("2_4", lambda f, x: x),
    ("2_4", 0.5),
    ("2_5", Made(lambda: {"network": own(), "everything": "layer2.1", "bypassed": "layer1"})),
    ("2_5", Made(lambda: {"network": own(), "everything": "layer2.1.conv2", "bypassed": "layer2.1.conv1"})),
    ("2_5", Made(lambda: {"network": own(), "everything": "fc", "bypassed": "layer2.1.conv1"})),
    ("2_5", Made(lambda: {"network": own(), "everything": "layer9", "bypassed": "layer2.1.conv1"})),
    ("2_5", Made(lambda: {"network": own(), "everything": "", "bypassed": "layer2.1.conv1"})),
    ("2_5", Made(lambda: {"network": plain(), "everything": "0", "bypassed": "2"})),
    ("2_5", {"network": print, "everything": "layer2", "bypassed": "layer2.1.conv1"}),
    ("2_5", {"everything": "layer2", "bypassed": "layer2.1.conv1"}),
    ("3_1", [2, 1, 2]),
    ("3_1", [3, 3, 3]),
    ("3_1", None),
    ("3_2", [1, 1, 1]),
    ("3_2", [1, 0, -1]),
    ("3_3", 0.75),
    ("3_3", "a quarter?"),
    ("3_3", 4 / 9),
    ("3_3", float("nan")),
    ("3_4", [2, 1]),
    ("3_4", [4, 4]),
    ("3_4", [1 / 4, 1]),
    ("3_4", [9, 4]),
    ("3_4", 4),
    ("3_4", [float("nan"), 1]),
    ("3_5", Made(lambda: {"network": own("resnet18"), "period": 16})),
    ("3_5", Made(lambda: {"network": own("resnet18"), "period": 128})),
    ("3_5", Made(lambda: {"network": own("resnet18"), "period": 2})),
    ("3_5", Made(lambda: {"network": own(), "period": "long"})),
    ("3_5", Made(lambda: {"network": own(), "period": []})),
    ("3_5", {"network": torch.nn.Linear(3, 2), "period": 2}),
    ("3_5", {"network": "resnet18", "period": 32}),
    ("3_5", 32),
    ("4_1", 322_560),
    ("4_1", 92_320),
    ("4_2", "abc"),
    ("4_2", "bc"),
    ("4_3", lambda before, after, x: after(before(x)[..., ::2, ::2])),
    ("4_3", lambda before, after, x: after(before(x))),
    ("4_3", lambda before, after, x: after(before(x)[..., ::2, ::2]) * torch.nan),
    ("4_3", lambda before, after: after(before)),
    ("4_3", lambda before, after, x: "convolution, mean, convolution"),
    ("4_4", 0.075),
    ("4_4", 0.925),
    ("4_4", 0.1),
    ("4_4", float("nan")),
    ("4_5", Made(lambda: (own(), sal.fixes.Surrogate.of(own())))),
    ("4_5", Made(lambda: (own(), "fitted"))),
    ("4_5", Made(lambda: (own(), fitted()[1]))),
    ("4_5", Made(lambda: (spoilt(fitted()[0]), fitted()[1]))),
    ("4_5", Made(lambda: (torch.nn.Linear(2, 2), fitted()[1]))),
    ("4_5", Made(lambda: own())),
    ("4_5", "ab"),
    ("5_1", 2),
    ("5_1", 15),
    ("5_1", [1, 2, 4, 8]),
    ("5_2", [1 / 6] * 6),
    ("5_2", [1, 2, 2, 2, 2, 2, 1]),
    ("5_2", [1 / 7] * 7),
    ("5_3", lambda blur: displacement(blur, axis=3).abs() + 1),
    ("5_3", lambda blur: displacement(blur).abs()),
    ("5_3", lambda blur: -displacement(blur)),
    ("5_3", lambda blur: torch.nan),
    ("5_3", lambda blur: displacement(blur, axis=4)),
    ("5_3", lambda blur: blur(0)),
    ("5_3", 0.5),
    ("5_4", hanging(hook_of(), remove=False)),
    ("5_4", hanging(hook_of(), always=False)),
    ("5_4", hanging(hook_of(before=False))),
    ("5_4", hanging(hook_of(lambda g: 0 * g))),
    ("5_4", hanging(lambda layer: layer.register_forward_pre_hook(lambda module, inputs: None))),
    ("5_4", hanging(lambda layer: layer.register_forward_pre_hook(lambda m, inputs: (mean_of_shifts(inputs[0]),)))),
    ("5_4", swallowing),
    ("5_4", outspoken),
    ("5_4", lambda model: iter([model])),
    ("5_4", lambda: None),
    ("5_4", 3),
    ("5_5", Made(lambda: (own("resnet18"), ["layer4.1"]))),
    ("5_5", Made(lambda: (own("resnet18"), ["layer3.1", "layer4.0", "layer4.1"]))),
    ("5_5", Made(lambda: (own("resnet18"), ["layer4"]))),
    ("5_5", Made(lambda: (own("resnet18"), 2))),
    ("5_5", Made(lambda: (pooled(), "3"))),
    ("5_5", Made(lambda: (plain(), ["1", "3"]))),
    ("5_5", Made(lambda: (torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU()), ["1"]))),
    ("5_5", ("resnet18", ["layer4.0", "layer4.1"])),
    ("5_5", ["layer4.0", "layer4.1"]),
    ("6_1", [8, 9]),
    ("6_1", [9, 32]),
    ("6_1", 32),
    ("6_2", lambda A, A_star, x, y: 0.0),
    ("6_2", lambda A, A_star, x, y: (A(x) - A_star(x)).abs().sum()),
    ("6_2", lambda A, A_star, x, y: (A(x) - A_star(y)).abs().sum()),
    ("6_2", lambda A, A_star, x, y: (A(x) * y).sum() - (x * A(y)).sum()),
    ("6_2", lambda A, A_star, x, y: torch.nan),
    ("6_2", lambda A, A_star, x, y: None),
    ("6_2", 3.0),
    ("6_3", "input"),
    ("6_3", "hidden"),
    ("6_3", None),
    ("6_4", "a"),
    ("6_4", "ab"),
    ("6_4", "abde"),
    ("6_4", "abcd"),
    ("6_4", 3),
    ("6_5", Made(lambda: (own(), own()))),
    ("6_5", Made(lambda: (own(),) * 2)),
    ("6_5", Made(lambda: anti_aliased(own(), skip=0))),
    ("6_5", Made(lambda: anti_aliased(own(), skip=2))),
    ("6_5", Made(lambda: anti_aliased(own(), blur=cyclic_mean))),
    ("6_5", Made(lambda: anti_aliased(own(), duplicate=copy))),
    ("6_5", Made(lambda: (own(), torch.nn.Linear(2, 2)))),
    ("6_5", Made(lambda: (own(), sal.smoothed(own(), "forward")))),
    ("6_5", Made(lambda: anti_aliased(plain()))),
    ("6_5", Made(own)),
    ("7_1", 2),
    ("7_1", 2.83),
    ("7_2", 0.6),
    ("7_2", 0),
    ("7_2", 20),
    ("7_3", lambda a, share: plant(a, share, variance=False)),
    ("7_3", lambda a, share: plant(a, share**2)),
    ("7_3", lambda a, share: a),
    ("7_3", lambda a, share: share),
    ("7_3", lambda a, share: a * torch.nan),
    ("7_3", lambda a: a),
    ("7_3", 0.5),
    ("7_4", [2, 0]),
    ("7_4", [1, 0]),
    ("7_4", [1.98, 0.02]),
    ("7_4", 1.98),
    ("7_5", Made(lambda: (most_gridded, plain()))),
    ("7_5", Made(lambda: (most_gridded, "resnet18"))),
    ("7_5", Made(lambda: (lambda *a: most_gridded(*a, room=1), two_classes()))),
    ("7_5", Made(lambda: (lambda *a: most_gridded(*a, best=min), two_classes()))),
    ("7_5", Made(lambda: (lambda *a: most_gridded(*a, best=second), own()))),
    ("7_5", Made(lambda: (lambda *a: (most_gridded(*a)[0], 100 * most_gridded(*a)[1]), two_classes()))),
    ("7_5", Made(lambda: (lambda *a: most_gridded(*a)[0], two_classes()))),
    ("7_5", Made(lambda: (lambda *a: ("layer9", 0.5), two_classes()))),
    ("7_5", most_gridded),
    ("8_1", 0.52),
    ("8_1", 0.65),
    ("8_2", "a"),
    ("8_2", "abcd"),
    ("8_2", ["a", "b", "d", "e"]),
    ("8_2", 3),
    ("8_3", (4, 11)),
    ("8_3", (4, 11 + 4 / 6)),
    ("8_3", (4 + 11 / 6, 11 + 4 / 6)),
    ("8_3", (12, 6)),
    ("8_3", 6),
    ("8_3", (float("nan"), 12)),
    ("8_4", lambda a, b: torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1]),
    ("8_4", lambda a, b: torch.corrcoef(torch.stack([a.flatten().argsort(), b.flatten().argsort()]).double())[0, 1]),
    ("8_4", lambda a, b: float("nan")),
    ("8_4", lambda a, b: None),
    ("8_4", lambda a, b: a @ b),
    ("8_4", 1.0),
    ("8_5", Made(lambda: (lambda *a: -lead(*a), two_classes()))),
    ("8_5", Made(lambda: (area, two_classes()))),
    ("8_5", Made(lambda: (lambda m, x, s, target: lead(m, x, s, None), two_classes()))),
    ("8_5", Made(lambda: (lambda m, x, s, target: lead(m, x, s, target, x.shape[2:]), two_classes()))),
    ("8_5", Made(lambda: (lambda m, x, s, target: lead(m, x, s, target, (2, 2)), two_classes()))),
    ("8_5", (lambda *a: float("nan"), None)),
    ("8_5", (lambda *a: 1 / 0, None)),
    ("8_5", (lead, torch.nn.Linear(3, 2))),
    ("8_5", (lead, "resnet18")),
    ("8_5", lead),
    ("9_1", 4),
    ("9_1", 0),
    ("9_2", 0.3),
    ("9_2", 0.8),
    ("9_3", lambda m, stride, offset: place(m, stride, 0.0)),
    ("9_3", lambda m, stride, offset: place(m, stride, (stride - 1) / 2)),
    ("9_3", lambda m, stride, offset: place(m, stride, offset)[::-1]),
    ("9_3", lambda m, stride, offset: place(m, stride, offset)[0]),
    ("9_2", 60),
    ("9_3", lambda m, stride, offset: (float("nan"), float("nan"))),
    ("9_3", lambda m: m),
    ("9_3", (4, 4)),
    ("9_4", lambda box, size, tolerance: (box[2] - box[0]) * (box[3] - box[1]) / (size[0] * size[1])),
    ("9_4", lambda box, size, tolerance: chance(box, size, 0)),
    ("9_4", lambda box, size, tolerance: chance(box, size, tolerance, power=1)),
    ("9_4", lambda box, size, tolerance: chance(box, size[::-1], tolerance)),
    ("9_4", lambda box, size, tolerance: chance([0, 0, box[2] - box[0], box[3] - box[1]], size, tolerance)),
    ("9_4", lambda box, size, tolerance: float("nan")),
    ("9_4", 0.3),
    ("9_5", Made(lambda: (lambda *a: middle(*a)[::-1], two_classes()))),
    ("9_5", Made(lambda: (lambda *a: middle(*a, size=lambda g: g), two_classes()))),
    ("9_5", Made(lambda: (lambda m, x, layer, unit: (2 * unit[0], 2 * unit[1]), two_classes()))),
    ("9_5", Made(lambda: (lambda *a: divmod(int(unit_field(*a).argmax()), 16), two_classes()))),
    ("9_5", Made(lambda: (lambda *a: unit_field(*a), two_classes()))),
    ("9_5", (middle, torch.nn.Conv2d(3, 2, 1))),
    ("9_5", (middle, torch.nn.Linear(3, 2))),
    ("9_5", (middle, None)),
    ("9_5", (9, 7)),
    ("10_1", 18),
    ("10_1", 81),
    ("10_1", "many"),
    ("10_2", (0.1, 0.1)),
    ("10_2", (1 / 9, 1)),
    ("10_2", (0.1, 0.5)),
    ("10_2", 0.9),
    ("10_2", (float("nan"), 0.9)),
    ("10_3", 0),
    ("10_3", 0.5),
    ("10_3", 0.841),
    ("10_3", 0.317),
    ("10_3", "a little"),
    ("10_4", 0.5),
    ("10_4", lambda f, x, sigma, n, seed: smoothgrad_of(f, x, 0.0, 1, seed)),
    ("10_4", lambda f, x, sigma, n, seed: smoothgrad_of(f, x, 2 * sigma, n, seed)),
    ("10_4", lambda f, x, sigma, n, seed: n * smoothgrad_of(f, x, sigma, n, seed)),
    ("10_4", lambda f, x, sigma, n, seed: smoothgrad_of(f, x, sigma, n, seed).abs()),
    ("10_4", lambda f, x, sigma, n, seed: None),
    ("10_4", lambda f, x, sigma, n, seed: smoothgrad_of(f, x, sigma, n, torch.seed() % 1000)),
    ("10_4", lambda f, x, sigma, n, seed: smoothgrad_of(f, x, sigma, n, 0)),
    ("10_4", lambda f, x, sigma, n, seed: torch.full_like(x, float("nan"))),
    ("10_4", lambda f, x, sigma, n, seed: smoothgrad_of(f, x.add_(sigma), sigma, n, seed)),
    ("10_4", lambda f, x: f(x)),
    ("10_5", Made(lambda: (lambda *a: looks(*a, proportional=True), two_classes()))),
    ("10_5", Made(lambda: (lambda m, x, noise, agreement: looks(m, x, noise, 0.9), two_classes()))),
    ("10_5", Made(lambda: (lambda m, x, noise, agreement: looks(m, x, noise / 2, agreement), two_classes()))),
    ("10_5", Made(lambda: (lambda *a: 50, two_classes()))),
    ("10_5", Made(lambda: (lambda m, x, *a: looks(m, x, *a) * (1 if x.shape[2] == 64 else 3), two_classes()))),
    ("10_5", (lambda *a: float("nan"), None)),
    ("10_5", (looks, torch.nn.Linear(3, 2))),
    ("10_5", looks),
    ("11_1", (2304, 10)),
    ("11_1", (589_824, 2)),
    ("11_1", (589_824, 9)),
    ("11_1", "many"),
    ("11_2", (2, 1)),
    ("11_2", (1.19, 1.19)),
    ("11_2", (1.19,)),
    ("11_2", (float("nan"), 1)),
    ("11_3", lambda g, x: (g.clamp(min=0) * x.clamp(min=0)).square().sum(1).sqrt()),
    ("11_3", lambda g, x: g.clamp(min=0).norm(dim=1) * x.clamp(min=0).norm(dim=1)),
    ("11_3", lambda g, x: g.norm(dim=1) * x.norm(dim=1)),
    ("11_3", lambda g, x: positive_norm(g, x).square()),
    ("11_3", lambda g, x: positive_norm(g, x) * float("nan")),
    ("11_3", lambda g, x: 0.0),
    ("11_3", lambda g: g),
    ("11_3", 3),
    ("11_4", Made(lambda: (own(), "layer4.0"))),
    ("11_4", Made(lambda: (own(), "input"))),
    ("11_4", Made(lambda: (own(), "layer9"))),
    ("11_4", Made(lambda: (own(), 4))),
    ("11_4", Made(lambda: (own("tissue_resnet"), "layer4.1"))),
    ("11_4", Made(lambda: (own("densenet121"), "features.norm5"))),
    ("11_4", Made(lambda: (blind(), "3"))),
    ("11_4", Made(own)),
    ("11_4", ("a network", "layer4.1")),
    ("11_5", Made(lambda: (own(), cat(), 1e-4))),
    ("11_5", Made(lambda: (own(), cat(), 1.0))),
    ("11_5", Made(lambda: (own(), cat(), 1e9))),
    ("11_5", Made(lambda: (own(), cat(), "large"))),
    ("11_5", Made(lambda: (own(), cat(), -0.06))),
    ("11_5", Made(lambda: (own(), cat().expand(2, -1, -1, -1), 0.06))),
    ("11_5", Made(lambda: (own(), "a cat", 0.06))),
    ("11_5", ("a network", torch.ones(1, 3, 64, 64), 0.06)),
    ("11_5", 0.06),
    ("12_1", 0.4),
    ("12_1", 0.3),
    ("12_1", "more"),
    ("12_2", 0.5),
    ("12_2", 1.0),
    ("12_3", lambda model, images, marked: (model(marked).sigmoid() - model(images).sigmoid()).mean()),
    ("12_3", lambda model, images, marked: jump(model, marked, images)),
    ("12_3", lambda model, images, marked: (model(marked) - model(images)).abs().mean()),
    ("12_3", lambda model, images, marked: model(marked) - model(images)),
    ("12_3", lambda model, images, marked: float("nan")),
    ("12_3", lambda model: 0.0),
    ("12_3", 3.0),
    ("12_4", lambda rough, smooth: 0.187 / as_smooth(rough, smooth)),
    ("12_4", lambda *a: as_smooth(*a, variation=lambda m: m.diff(dim=0).abs().sum() + m.diff(dim=1).abs().sum())),
    ("12_4", lambda rough, smooth: 1.0),
    ("12_4", lambda rough, smooth: smooth),
    ("12_4", lambda rough, smooth: float("nan")),
    ("12_4", lambda rough, smooth: 1 / 0),
    ("12_4", 1.0),
    ("12_5", Made(lambda: barred(target=83))),
    ("12_5", Made(lambda: barred(target=100))),
    ("12_5", Made(lambda: barred(target="any"))),
    ("12_5", Made(lambda: barred(rows=12))),
    ("12_5", Made(lambda: barred(rows=0))),
    ("12_5", Made(lambda: [one[:5] if isinstance(one, torch.Tensor) else one for one in barred()])),
    ("12_5", Made(lambda: (own(), cat(), cat()[0], 36))),
    ("12_5", ("a network", torch.zeros(6, 3, 64, 64), torch.eye(64).expand(6, 3, 64, 64), 0)),
    ("12_5", Made(lambda: barred()[:3])),
    ("13_1", 0.02),
    ("13_1", 2),
    ("13_1", 0.5),
    ("13_2", 98),
    ("13_2", 111),
    ("13_2", "a lot"),
    ("13_3", lambda left, right: blend(right, left)),
    ("13_3", lambda left, right: (left + right) / 2),
    ("13_3", lambda left, right: left),
    ("13_3", lambda left, right: torch.cat([left, right], 1)),
    ("13_3", lambda left: left),
    ("13_3", 1.0),
    ("13_4", lambda *a: rank(*a, statistic=torch.sum)),
    ("13_4", lambda *a: rank(*a, background=True)),
    ("13_4", lambda *a: rank(*a)[::-1]),
    ("13_4", lambda *a: rank(*a)[:2]),
    ("13_4", lambda saliency, labels: rank(saliency.abs(), labels)),
    ("13_4", lambda saliency, labels: rank(saliency.clamp(min=0), labels, torch.max)),
    ("13_4", lambda saliency, labels: list(range(4))),
    ("13_4", lambda saliency, labels: saliency),
    ("13_4", lambda saliency, labels: "the second"),
    ("13_4", [3, 2]),
    ("13_5", Made(lambda: (own(), strip(), "layer2.1", 60))),
    ("13_5", Made(lambda: (own(), strip(), "layer2.1", 400))),
    ("13_5", Made(lambda: (own(), strip(), "layer2.1", 4000))),
    ("13_5", Made(lambda: (own(), strip(), "layer2.1", "wide"))),
    ("13_5", Made(lambda: (own(), strip(), "layer9", 140))),
    ("13_5", Made(lambda: (own(), strip(40), "layer2.1", 10))),
    ("13_5", Made(lambda: (own(), None, "layer2.1", 10))),
    ("13_5", Made(lambda: (own("squeezenet1_1"), strip(), "layer2.1", 140))),
    ("13_5", ("a network", torch.ones(1, 3, 64, 512), "layer2.1", 140)),
    ("13_5", 140),
    ("14_1", [3, 16]),
    ("14_1", [32, 3]),
    ("14_1", [8, 3]),
    ("14_1", [16, 4]),
    ("14_1", [16, 5]),
    ("14_1", 16),
    ("14_1", "sixteen"),
    ("14_2", lambda photo: prepared(photo)[0]),
    ("14_2", lambda photo: prepared(photo).permute(0, 2, 3, 1)),
    ("14_2", lambda photo: torch.as_tensor(photo).permute(2, 0, 1)[None] / 255),
    ("14_2", lambda photo: torch.as_tensor(photo).permute(2, 0, 1)[None]),
    ("14_2", lambda photo: normalize(torch.as_tensor(photo).permute(2, 0, 1)[None].float())),
    ("14_2", lambda photo: normalize(torch.as_tensor(photo).reshape(1, 3, 6, 8) / 255)),
    ("14_2", lambda photo: prepared(photo[..., ::-1].copy())),
    ("14_2", lambda photo: prepared(photo).numpy()),
    ("14_2", lambda photo: prepared(photo) * float("nan")),
    ("14_2", lambda photo: None),
    ("14_2", lambda photo: "normalised"),
    ("14_2", lambda photo: photo.permute(2, 0, 1)),
    ("14_2", torch.zeros(1, 3, 6, 8)),
    ("14_3", lambda model, x: list(sal.hidden_layers(model, x))),
    ("14_3", lambda model, x: list(sal.strided_layers(model))),
    ("14_3", lambda model, x: shrinks(model, x)[1:]),
    ("14_3", lambda model, x: len(shrinks(model, x))),
    ("14_3", lambda model, x: ", ".join(shrinks(model, x))),
    ("14_3", lambda model, x: [sal.hidden_layers(model, x)[name] for name in shrinks(model, x)]),
    ("14_3", lambda model, x: [n for n, one in sal.hidden_layers(model, x).items() if max(one.stride) > 1]),
    ("14_3", lambda model, x: model.layer1),
    ("14_3", ["relu", "layer2.0"]),
    ("14_4", scored(lambda p: p)),
    ("14_4", scored(torch.log)),
    ("14_4", scored(lambda p: 1000 * p)),
    ("14_4", scored(lambda p: 1 - p)),
    ("14_4", scored(lambda p: p.sum(1))),
    ("14_4", scored(lambda p: {"out": p})),
    ("14_4", scored(lambda p: torch.logit(p).detach())),
    ("14_4", lambda model: model),
    ("14_4", lambda model: lambda x: torch.logit(model(x)["out"])),
    ("14_4", lambda model: model.layer1),
    ("14_4", torch.nn.Identity()),
    ("14_4", "log"),
    ("14_5", {"network": own(), "changed": "layer4.0", "unchanged": "layer4.0"}),
    ("14_5", {"network": own(), "changed": "layer2.1", "unchanged": "layer3.1"}),
    ("14_5", {"network": own(), "changed": "layer4.0", "unchanged": "layer2.1"}),
    ("14_5", {"network": own(), "changed": "layer9", "unchanged": "layer4.0"}),
    ("14_5", {"network": own(), "changed": 2, "unchanged": "layer4.0"}),
    ("14_5", {"network": own(), "changed": "layer2.1"}),
    ("14_5", {"network": "resnet18", "changed": "layer2.1", "unchanged": "layer4.0"}),
    ("14_5", {"network": torch.nn.Linear(3, 3), "changed": "layer2.1", "unchanged": "layer4.0"}),
    ("14_5", {"network": plain(), "changed": "0", "unchanged": "0"}),
    ("14_5", ["layer2.1", "layer4.0"]),
    ("14_5", own()),
]


def said(name, answer, capsys):
    if isinstance(answer, Made):
        answer = answer.make()
    getattr(exercises, f"check_{name}")(answer)
    return capsys.readouterr().out


@pytest.mark.parametrize(("name", "answer"), RIGHT)
def test_right_answers_are_accepted(name, answer, capsys):
    assert said(name, answer, capsys).startswith("Correct: ")


@pytest.mark.parametrize(("name", "answer"), WRONG)
def test_wrong_answers_get_a_hint(name, answer, capsys):
    assert said(name, answer, capsys).startswith("Not yet: ")


@pytest.mark.parametrize(("name", "function"), [("7_5", most_gridded), ("8_5", lead), ("9_5", middle), ("10_5", looks)])
def test_whatever_a_function_does_to_the_network_is_done_to_a_copy(name, function, capsys):
    network = two_classes()
    before = {key: value.clone() for key, value in network.state_dict().items()}

    def spoiling(model, *inputs):
        found = function(model, *inputs)
        for parameter in model.train().parameters():
            parameter.data.zero_()
        model.eval()
        return found

    assert said(name, (spoiling, network), capsys).startswith("Correct: ")
    assert network.training
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


@pytest.mark.parametrize(
    ("name", "answer"),
    [("4_5", fitted), ("5_5", lambda: (own(), ["layer4.0", "layer4.1"])), ("6_5", lambda: anti_aliased(own()))],
)
def test_a_network_that_is_handed_over_is_left_as_it_was(name, answer, capsys):
    network, other = answer()
    network.train()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    assert said(name, (network, other), capsys).startswith("Correct: ")
    assert network.training
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks or "forward" in vars(m) for m in network.modules())


@pytest.mark.parametrize("check", [name for name in dir(exercises) if name.startswith("check_")])
@pytest.mark.parametrize("dots", [..., [...], {"key": ...}])
def test_dots_are_no_answer_and_no_error(check, dots, capsys):
    getattr(exercises, check)(dots)
    assert capsys.readouterr().out == "Your answer goes in place of the dots.\n"
