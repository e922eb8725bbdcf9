"""Every check accepts the right answer in all its forms, and none of the plausible wrong ones."""

import pytest
import torch

import smoothsal_lib as sal
from smoothsal_lib import exercises


def displacement(blur, axis=2):
    impulse = torch.zeros(1, 1, 9, 9)
    impulse[0, 0, 4, 4] = 1
    rows = torch.arange(9.0).view(9, 1) if axis == 2 else torch.arange(9.0).view(1, 9)
    out = blur(impulse)[0, 0]
    return (out * rows).sum() / out.sum() - 4


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


def jump(model, images, marked):
    return (model(marked) - model(images)).mean()


def blend(left, right):
    weight = torch.linspace(0, 1, left.shape[1])
    return (1 - weight) * left + weight * right


RIGHT = [
    ("1_1", 9),
    ("1_1", "9"),
    ("1_1", [9]),
    ("1_2", contrast),
    ("1_2", lambda gradient, stride: contrast(gradient, stride).item()),
    ("1_3", {"stride": 2.4, "max": 1.02, "average": 1.0}),
    ("1_3", {"average": torch.tensor(1.0), "max": torch.tensor(1.1), "stride": torch.tensor(1.8)}),
    ("2_1", last_gradient),
    ("2_1", lambda: last_gradient().tolist()),
    ("2_2", multiplier),
    ("2_3", {"gradient", "gradient_x_activation", "deeplift", "integrated_gradients"}),
    ("2_3", ["integrated_gradients", "deeplift", "gradient_x_activation", "gradient"]),
    ("2_3", "gradient, gradient_x_activation, deeplift, integrated_gradients"),
    ("3_1", [2, 2, 1]),
    ("3_1", torch.tensor([2, 2, 1])),
    ("3_2", [1, 2, 1]),
    ("3_2", (0.3, 0.1, -0.2)),
    ("3_3", 0.25),
    ("3_3", "0.25"),
    ("3_3", torch.tensor(0.25)),
    ("4_1", 322_880),
    ("4_2", "a"),
    ("4_2", ["A"]),
    ("4_3", lambda before, after, x: after(torch.nn.functional.avg_pool2d(before(x), 2))),
    ("4_3", lambda before, after, x: after(sum(before(x)[..., i::2, j::2] for i in (0, 1) for j in (0, 1)) / 4)),
    ("5_1", 7.5),
    ("5_1", -7.5),
    ("5_2", [1 / 12, 1 / 6, 1 / 6, 1 / 6, 1 / 6, 1 / 6, 1 / 12]),
    ("5_2", torch.tensor([1, 2, 2, 2, 2, 2, 1]) / 12),
    ("5_3", displacement),
    ("6_1", [32, 9]),
    ("6_2", gap),
    ("6_2", lambda *a: gap(*a).abs()),
    ("6_3", "Both"),
    ("7_1", 4),
    ("7_1", torch.tensor(4.0)),
    ("7_2", 0.2),
    ("7_3", plant),
    ("7_3", lambda a, share: -plant(a, share)),
    ("8_1", 0.525),
    ("8_2", ["a", "b", "d"]),
    ("8_2", "B, D, A"),
    ("8_3", spearman),
    ("8_3", lambda a, b: spearman(a, b).item()),
    ("9_1", 3.5),
    ("9_1", -3.5),
    ("9_2", 0.6),
    ("9_3", place),
    ("9_3", lambda *a: torch.stack(place(*a))),
    ("10_1", 90),
    ("10_1", torch.tensor(90.0)),
    ("10_2", smoothgrad_of),
    ("10_3", (0.1, 0.9)),
    ("11_1", (589_824, 10)),
    ("11_2", positive_norm),
    ("11_3", (1.19, 1)),
    ("11_3", torch.tensor([2**0.25, 1.0], dtype=torch.float64)),
    ("12_1", 2.5),
    ("12_1", "2.5"),
    ("12_2", 5 / 6),
    ("12_2", 0.833),
    ("12_3", jump),
    ("12_3", lambda *a: jump(*a).item()),
    ("13_1", 0.1),
    ("13_1", 10),
    ("13_2", 112),
    ("13_3", blend),
    ("13_3", lambda left, right: torch.lerp(left, right, torch.linspace(0, 1, left.shape[1]))),
]
WRONG = [
    ("1_1", 4),
    ("1_1", 3),
    ("1_1", "nine"),
    ("1_2", lambda gradient, stride: 1 / contrast(gradient, stride)),
    ("1_2", lambda gradient, stride: contrast(gradient, 2)),
    ("1_2", lambda gradient, stride: contrast(gradient.mean(1, keepdim=True), stride)),
    ("1_2", lambda gradient, stride: None),
    ("1_2", 2.0),
    ("1_3", 2.0),
    ("1_3", {"stride": 2.4, "max": 1.02}),
    ("1_3", {"stride": 2.4, "max": 2.2, "average": 1.0}),
    ("1_3", {"stride": 1.0, "max": 1.0, "average": 1.0}),
    ("1_3", {"stride": 2.4, "max": 0.9, "average": 1.0}),
    ("1_3", {"stride": "much", "max": 1.0, "average": 1.0}),
    ("2_1", lambda: last_gradient(share=False)),
    ("2_1", lambda: last_gradient().flip(0)),
    ("2_1", [1.0, 2.0]),
    ("2_2", lambda f, z, z_ref: (f(z) - f(z_ref)) / (z - z_ref)),
    ("2_2", lambda f, z, z_ref: torch.autograd.functional.vjp(f, z, torch.ones_like(z))[1]),
    ("2_2", lambda f, z, z_ref: ((f(z) - f(z_ref)) / (z - z_ref)).nan_to_num(0)),
    ("2_2", lambda f, z, z_ref: 1.0),
    ("2_2", "rescale"),
    ("2_3", {"gradient"}),
    ("2_3", {"gradient", "gradient_x_activation", "deeplift", "integrated_gradients", "grad_cam"}),
    ("2_3", {"gradients"}),
    ("2_3", 4),
    ("3_1", [2, 1, 2]),
    ("3_1", [3, 3, 3]),
    ("3_1", None),
    ("3_2", [1, 1, 1]),
    ("3_2", [1, 0, -1]),
    ("3_3", 0.75),
    ("3_3", "a quarter?"),
    ("4_1", 322_560),
    ("4_1", 92_320),
    ("4_2", "abc"),
    ("4_2", "bc"),
    ("4_3", lambda before, after, x: after(before(x)[..., ::2, ::2])),
    ("4_3", lambda before, after, x: after(before(x))),
    ("5_1", 2),
    ("5_1", 15),
    ("5_2", [1 / 6] * 6),
    ("5_2", [1, 2, 2, 2, 2, 2, 1]),
    ("5_2", [1 / 7] * 7),
    ("5_3", lambda blur: displacement(blur, axis=3).abs() + 1),
    ("5_3", lambda blur: displacement(blur).abs()),
    ("5_3", 0.5),
    ("6_1", [8, 9]),
    ("6_2", lambda A, A_star, x, y: 0.0),
    ("6_2", lambda A, A_star, x, y: (A(x) - A_star(x)).abs().sum()),
    ("6_2", 3.0),
    ("6_3", "input"),
    ("6_3", "hidden"),
    ("7_1", 2),
    ("7_1", 2.83),
    ("7_2", 0.6),
    ("7_2", 0),
    ("7_2", 20),
    ("7_3", lambda a, share: plant(a, share, variance=False)),
    ("7_3", lambda a, share: plant(a, share**2)),
    ("7_3", lambda a, share: a),
    ("7_3", lambda a, share: share),
    ("7_3", 0.5),
    ("8_1", 0.52),
    ("8_1", 0.65),
    ("8_2", "a"),
    ("8_2", "abcd"),
    ("8_2", ["a", "b", "d", "e"]),
    ("8_3", lambda a, b: torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1]),
    ("8_3", lambda a, b: torch.corrcoef(torch.stack([a.flatten().argsort(), b.flatten().argsort()]).double())[0, 1]),
    ("8_3", lambda a, b: None),
    ("8_3", 1.0),
    ("9_1", 4),
    ("9_1", 0),
    ("9_2", 0.3),
    ("9_2", 0.8),
    ("9_3", lambda m, stride, offset: place(m, stride, 0.0)),
    ("9_3", lambda m, stride, offset: place(m, stride, (stride - 1) / 2)),
    ("9_3", lambda m, stride, offset: place(m, stride, offset)[::-1]),
    ("9_3", lambda m, stride, offset: place(m, stride, offset)[0]),
    ("9_3", (4, 4)),
    ("10_1", 18),
    ("10_1", 81),
    ("10_1", "many"),
    ("10_2", 0.5),
    ("10_2", lambda f, x, sigma, n, seed: smoothgrad_of(f, x, 0.0, 1, seed)),
    ("10_2", lambda f, x, sigma, n, seed: smoothgrad_of(f, x, 2 * sigma, n, seed)),
    ("10_2", lambda f, x, sigma, n, seed: n * smoothgrad_of(f, x, sigma, n, seed)),
    ("10_2", lambda f, x, sigma, n, seed: smoothgrad_of(f, x, sigma, n, seed).abs()),
    ("10_2", lambda f, x, sigma, n, seed: None),
    ("10_3", (0.1, 0.1)),
    ("10_3", (1 / 9, 1)),
    ("10_3", (0.1, 0.5)),
    ("10_3", 0.9),
    ("11_1", (2304, 10)),
    ("11_1", (589_824, 2)),
    ("11_1", (589_824, 9)),
    ("11_2", lambda g, x: (g.clamp(min=0) * x.clamp(min=0)).square().sum(1).sqrt()),
    ("11_2", lambda g, x: g.clamp(min=0).norm(dim=1) * x.clamp(min=0).norm(dim=1)),
    ("11_2", lambda g, x: g.norm(dim=1) * x.norm(dim=1)),
    ("11_2", lambda g, x: 0.0),
    ("11_2", 3),
    ("11_3", (2, 1)),
    ("11_3", (1.19, 1.19)),
    ("11_3", (1.19,)),
    ("12_1", 0.4),
    ("12_1", 0.3),
    ("12_1", "more"),
    ("12_2", 0.5),
    ("12_2", 1.0),
    ("12_3", lambda model, images, marked: (model(marked).sigmoid() - model(images).sigmoid()).mean()),
    ("12_3", lambda model, images, marked: jump(model, marked, images)),
    ("12_3", lambda model, images, marked: (model(marked) - model(images)).abs().mean()),
    ("12_3", lambda model, images, marked: model(marked) - model(images)),
    ("12_3", 3.0),
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
    ("13_3", 1.0),
]


def said(name, answer, capsys):
    if name == "2_1" and callable(answer):
        answer = answer()  # made here, because it needs the trained network
    getattr(exercises, f"check_{name}")(answer)
    return capsys.readouterr().out


@pytest.mark.parametrize(("name", "answer"), RIGHT)
def test_right_answers_are_accepted(name, answer, capsys):
    assert said(name, answer, capsys).startswith("Correct: ")


@pytest.mark.parametrize(("name", "answer"), WRONG)
def test_wrong_answers_get_a_hint(name, answer, capsys):
    assert said(name, answer, capsys).startswith("Not yet: ")


@pytest.mark.parametrize("check", [name for name in dir(exercises) if name.startswith("check_")])
@pytest.mark.parametrize("dots", [..., [...], {"key": ...}])
def test_dots_are_no_answer_and_no_error(check, dots, capsys):
    getattr(exercises, check)(dots)
    assert capsys.readouterr().out == "Your answer goes in place of the dots.\n"
