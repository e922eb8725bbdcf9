"""Checks for the book's exercises: each says whether an answer is right, and why, or hands out a hint.

A check never raises for a wrong answer, and prints one line. The dots that stand in an exercise before it is solved are
no answer, and are met with a friendly word.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from smoothsal_lib.contributions import extract_aggregate
from smoothsal_lib.datasets.photos import load_photo
from smoothsal_lib.explain import explain
from smoothsal_lib.fixes.blur import centred_blur, cyclic_mean
from smoothsal_lib.fixes.stage import Geometry, Stage
from smoothsal_lib.metrics.noise import checkerboard_energy
from smoothsal_lib.metrics.similarity import rank_correlation
from smoothsal_lib.models import load_model


def _hint(text: str) -> None:
    print(f"Not yet: {text}.")


def _verdict(right: bool, why: str, hint: str) -> None:
    """Print that the answer is right and why, or the hint."""
    if right:
        print(f"Correct: {why}.")
    else:
        _hint(hint)


def _open(answer: object) -> bool:
    """Whether the exercise has not been tried; says so."""
    parts = answer.values() if isinstance(answer, dict) else answer if isinstance(answer, (list, tuple, set)) else ()
    untouched = answer is ... or any(part is ... for part in parts)
    if untouched:
        print("Your answer goes in place of the dots.")
    return untouched


def _numbers(answer: object, count: int | None = None) -> list[float] | None:
    """The answer as a list of numbers, from a number, a list or a tensor; ``None`` when it is none of these."""
    try:
        values = answer.flatten().tolist() if isinstance(answer, Tensor) else answer
        numbers = (
            [float(v) for v in values]
            if isinstance(values, Iterable) and not isinstance(values, str)
            else [float(values)]  # type: ignore[arg-type]
        )
    except (TypeError, ValueError):
        return None
    return numbers if count is None or len(numbers) == count else None


def check_1_1(answer: object) -> None:
    """Chapter 1: how many parity classes there are below a convolution with stride 3."""
    if _open(answer):
        return None
    number = _numbers(answer, 1)
    if number == [4]:
        return _hint("four is right for stride 2; how many remainders are there when you divide by 3?")
    if number == [3]:
        return _hint("three for the rows, and for the columns?")
    _verdict(
        number == [9],
        "three remainders for the row times three for the column, so the grid repeats every third position",
        "count the remainders of the row number modulo 3, and those of the column number",
    )


def check_1_2(answer: object) -> None:
    """Chapter 1: a function of gradient and stride that returns the brightest over the dimmest parity mean."""
    if _open(answer):
        return None
    if not callable(answer):
        return _hint("hand over the function itself, without calling it")
    for stride, shape in ((2, (1, 3, 8, 8)), (3, (2, 4, 9, 12)), (2, (2, 2, 7, 5))):
        gradient = torch.randn(shape, generator=torch.Generator().manual_seed(stride))
        gradient[..., 1::stride, ::stride] *= 5
        size = gradient.abs().mean((0, 1))
        means = [float(size[row::stride, column::stride].mean()) for row in range(stride) for column in range(stride)]
        wanted = max(means) / min(means)
        found = _numbers(answer(gradient, stride), 1)
        if found is None:
            return _hint("the function should return one number")
        if abs(found[0] * wanted - 1) < 1e-3:
            return _hint("that is the dimmest over the brightest: turn it round")
        if abs(found[0] - wanted) > 1e-3:
            return _hint(
                f"for a gradient of shape {shape} and stride {stride} the contrast is {wanted:.3f}, yours is "
                f"{found[0]:.3f}; do you take the absolute value first, and look at stride times stride classes?"
            )
    _verdict(True, "close to 1 without a grid, whatever the scale of the gradient", "")


def check_1_3(answer: object) -> None:
    """Chapter 1: the contrast of one network with strides, with max-pooling and with average pooling."""
    if _open(answer):
        return None
    names = ("stride", "max", "average")
    if not isinstance(answer, dict) or set(answer) != set(names):
        return _hint("give a dictionary with the keys 'stride', 'max' and 'average'")
    stride, largest, average = (_numbers(answer[name], 1) for name in names)
    if stride is None or largest is None or average is None:
        return _hint("each of the three should be one number")
    if min(*stride, *largest, *average) < 1:
        return _hint("a contrast is the brightest over the dimmest, so it cannot lie below 1")
    if stride[0] < 1.5:
        return _hint("the network with its strides should show a contrast well above 1")
    _verdict(
        largest[0] < 1.2 and average[0] < 1.2,
        "no grid with pooling: the average spreads its gradient evenly, the maximum sends it to a winner that the "
        "picture chooses, now here, now there",
        "with pooling the contrast is close to 1; are all convolutions at stride 1, those on the shortcuts as well?",
    )


def check_2_1(answer: object) -> None:
    """Chapter 2: the gradient at the last block, where only a mean and a linear layer follow."""
    if _open(answer):
        return None
    given = _numbers(answer)
    model = load_model()
    x, _ = load_photo("chelsea")
    wanted = explain(model, x, layers="layer4.1", method="gradient", fix=None)["layer4.1"][0, :, 0, 0]
    if given is None or len(given) != len(wanted):
        return _hint(f"give {len(wanted)} numbers, one for each channel of layer4.1")
    off = wanted / torch.tensor(given)
    if not torch.allclose(off, torch.ones_like(off), rtol=1e-3) and float(off.std()) < 1e-3 * abs(float(off.mean())):
        return _hint(
            f"all of them are off by the same factor, {float(off.mean()):.4g}: how many positions share the mean?"
        )
    _verdict(
        torch.allclose(off, torch.ones_like(off), rtol=1e-3),
        "the mean hands every position an equal share of the weight",
        "which row of fc.weight belongs to the class, and what does the mean over positions do to it?",
    )


def check_2_2(answer: object) -> None:
    """Chapter 2: a function that gives the rescale rule's multipliers for any function of single elements."""
    if _open(answer):
        return None
    if not callable(answer):
        return _hint("hand over the function itself, without calling it")
    z = torch.tensor([2.0, 1.0, -1.0, -3.0, 0.5, -1.5])
    z_ref = torch.tensor([1.0, -1.0, 3.0, -1.0, 0.5, -1.5])
    same = z == z_ref
    tangents = {torch.relu: (z > 0).float(), torch.tanh: 1 - z.tanh() ** 2}
    for function, tangent in tangents.items():
        name, found = function.__name__, torch.as_tensor(answer(function, z.clone(), z_ref.clone())).detach()
        wanted = torch.where(same, tangent, (function(z) - function(z_ref)) / (z - z_ref))
        if found.shape != z.shape:
            return _hint(f"give one multiplier for each element, {len(z)} here and not {tuple(found.shape)}")
        if not torch.allclose(found[~same], wanted[~same], atol=1e-4):
            return _hint(f"for {name}: divide the change of the output by the change of the input")
        if not torch.allclose(found[same], wanted[same], atol=1e-4):
            return _hint(f"where the two ends meet you divide nought by nought; the limit is the derivative of {name}")
    _verdict(True, "a secant where the ends differ, and its limit, the tangent, where they meet", "")


def check_2_3(answer: object) -> None:
    """Chapter 2: the methods for which the map of a difference is the difference of the maps."""
    if _open(answer):
        return None
    names = answer.replace(",", " ").split() if isinstance(answer, str) else answer
    right = {"gradient", "gradient_x_activation", "deeplift", "integrated_gradients"}
    seven = [*sorted(right), "grad_cam", "guided_backprop", "deconvnet"]
    if not isinstance(names, Iterable) or not set(names := list(names)) <= set(seven):
        return _hint(f"give a set of names out of {', '.join(seven)}")
    if missing := right - set(names):
        return _hint(f"there are more, {len(missing)} of them: where does the score enter by its derivative alone?")
    _verdict(
        set(names) == right,
        "derivatives and multipliers of a difference subtract; the other three cut off what is negative, and then it "
        "matters whether you subtract before or after",
        "not all of these: some methods apply a ReLU to what comes back",
    )


def check_3_1(answer: object) -> None:
    """Chapter 3: taps met by each parity class, kernel 5, stride 3, no padding."""
    if _open(answer):
        return None
    counts = _numbers(answer, 3)
    if counts is None:
        return _hint("give three numbers, one for each remainder")
    if sorted(counts) == [1, 2, 2] and counts != [2, 2, 1]:
        return _hint("the right counts in another order: which taps leave remainder 2 when divided by 3?")
    if sum(counts) != 5:
        return _hint("every one of the five taps meets exactly one class, so the counts must sum to 5")
    _verdict(counts == [2, 2, 1], "taps 0 and 3, taps 1 and 4, and tap 2 alone", "list the taps by their remainder")


def check_3_2(answer: object) -> None:
    """Chapter 3: three weights without a checkerboard at stride 2."""
    if _open(answer):
        return None
    weights = _numbers(answer, 3)
    if weights is None:
        return _hint("give three numbers")
    if any(weight == 0 for weight in weights):
        return _hint("none of the weights may be zero")
    response = weights[0] - weights[1] + weights[2]
    _verdict(
        abs(response) <= 1e-6 * max(map(abs, weights)),
        "both classes receive the same sum, and the response at f = 1/2 is zero",
        f"one class receives {weights[1]:g}, the other {weights[0] + weights[2]:g}",
    )


def check_3_3(answer: object) -> None:
    """Chapter 3: share of positions that a dilated, strided convolution reads."""
    if _open(answer):
        return None
    share = _numbers(answer, 1)
    _verdict(
        share is not None and abs(share[0] - 0.25) < 0.01,
        "all taps fall on one class in four",
        "where do the taps stand, relative to each other, and which parity has each?",
    )


def check_4_1(answer: object) -> None:
    """Chapter 4: parameters of a stage."""
    if _open(answer):
        return None
    count = _numbers(answer, 1)
    if count == [322_560.0]:
        return _hint("the weights are right; each output channel also has a bias, in both convolutions")
    _verdict(count == [322_880.0], "92,320 in front of the mean and 230,560 behind it", "count both convolutions")


def check_4_2(answer: object) -> None:
    """Chapter 4: which strided convolutions a stage can reproduce exactly."""
    if _open(answer):
        return None
    letters = "".join(sorted(letter for letter in str(answer).lower() if letter in "abc"))
    _verdict(
        letters == "a",
        "it is a mean over blocks; the others pick pixels, and what alternates never passes the mean",
        "feed each a map that alternates between +1 and -1, and compare the outputs",
    )


def check_4_3(answer: object) -> None:
    """Chapter 4: a function that computes a stage's output."""
    if _open(answer):
        return None
    if not callable(answer):
        return _hint("hand over the function itself, without calling it")
    generator = torch.Generator().manual_seed(0)
    stage = Stage(Geometry((2, 3), 1, (3, 3), (2, 2), (1, 1), (1, 1)))
    x = torch.randn(2, 2, 8, 8, generator=generator)
    with torch.no_grad():
        given, wanted = answer(stage.before, stage.after, x), stage(x)
    if not isinstance(given, Tensor) or given.shape != wanted.shape:
        return _hint(f"for an input of {tuple(x.shape)} the output has the shape {tuple(wanted.shape)}")
    _verdict(
        torch.allclose(given, wanted, atol=1e-5), "convolution, mean, convolution", "what is bilinear by exactly 2?"
    )


def check_5_1(answer: object) -> None:
    """Chapter 5: shift of the published hook after four strided layers, in input pixels."""
    if _open(answer):
        return None
    shift = _numbers(answer, 1)
    if shift is not None and abs(shift[0]) == 2:
        return _hint("half a pixel four times, but of which map? Each layer's pixel spans more of the input")
    _verdict(shift is not None and abs(shift[0]) == 7.5, "(1 + 2 + 4 + 8) / 2", "add up half of each layer's pixel")


def check_5_2(answer: object) -> None:
    """Chapter 5: the centred kernel for stride 6."""
    if _open(answer):
        return None
    kernel = _numbers(answer)
    if kernel is None or len(kernel) != 7:
        return _hint("the kernel has an odd number of taps, one more than the stride")
    if abs(sum(kernel) - 1) > 0.01:
        return _hint(f"a constant must stay a constant: the weights sum to {sum(kernel):g}, not to 1")
    wanted = [1 / 12, *[1 / 6] * 5, 1 / 12]
    _verdict(
        all(abs(a - b) < 0.005 for a, b in zip(kernel, wanted, strict=True)),
        "a box of six and a box of two",
        "convolve a box of six with a box of two",
    )


def check_5_3(answer: object) -> None:
    """Chapter 5: a function that measures by how many rows a blur moves a map."""
    if _open(answer):
        return None
    if not callable(answer):
        return _hint("hand over the function itself, without calling it")
    cases = {
        0.5: lambda g: cyclic_mean(g, (2, 2)),
        0.0: lambda g: centred_blur(g, (2, 2)),
        -2.0: lambda g: g.roll(-2, 2),
    }
    for shift, blur in cases.items():
        measured = float(answer(blur))
        if abs(measured - shift) > 1e-4:
            return _hint(f"a blur that moves maps by {shift:g} rows is measured at {measured:g}")
    _verdict(True, "half a pixel for the published hook, nothing for the centred one", "")


def check_6_1(answer: object) -> None:
    """Chapter 6: what the two forms of the forward hook cost, in milliseconds."""
    if _open(answer):
        return None
    times = _numbers(answer, 2)
    _verdict(
        times is not None and abs(times[0] - 32) <= 1 and abs(times[1] - 9) <= 1,
        "four convolutions against one and a blur",
        "count the convolutions in each form",
    )


def check_6_2(answer: object) -> None:
    """Chapter 6: a function that measures how far two maps are from being adjoint."""
    if _open(answer):
        return None
    if not callable(answer):
        return _hint("hand over the function itself, without calling it")
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 1, 1, 6, 6, generator=generator)

    def blur(g: Tensor) -> Tensor:
        return centred_blur(g, (2, 2))

    def shift(g: Tensor) -> Tensor:
        return cyclic_mean(g, (2, 2))

    true_gap = abs(float((shift(x) * y).sum() - (x * shift(y)).sum()))
    if abs(float(answer(blur, blur, x, y))) > 1e-4:
        return _hint("the centred blur is its own adjoint, so its gap should be zero")
    measured = abs(float(answer(shift, shift, x, y)))
    _verdict(
        abs(measured - true_gap) < 1e-4,
        f"zero for the centred blur, {true_gap:.2f} here for the cyclic mean",
        f"for the cyclic mean the two inner products differ by {true_gap:.2f}, not by {measured:.2f}",
    )


def check_6_3(answer: object) -> None:
    """Chapter 6: which maps change when the stem is blurred as well."""
    if _open(answer):
        return None
    _verdict(
        str(answer).strip().lower() == "both",
        "the stem's grid shows at the input alone, but its output feeds every layer above",
        "follow the activations up as well as the gradient down",
    )


def check_7_1(answer: object) -> None:
    """Chapter 7: the total variation of a large checkerboard."""
    if _open(answer):
        return None
    number = _numbers(answer, 1)
    if number == [2]:
        return _hint("two is what one direction adds; there are two directions")
    _verdict(
        number == [4],
        "every step is one of 2, in two directions, and the mean size to divide by is 1",
        "what is the mean absolute value, and how large is the step from one position to the next?",
    )


def check_7_2(answer: object) -> None:
    """Chapter 7: the least agreement of two networks that are both right on 60 % of the images."""
    if _open(answer):
        return None
    number = _numbers(answer, 1)
    if number is not None and abs(number[0] - 20) < 1e-6:
        return _hint("as a share, please: a number between 0 and 1")
    if number is not None and abs(number[0]) < 1e-9:
        return _hint("60 % and 60 % are more than all images, so on some of them both are right")
    _verdict(
        number is not None and abs(number[0] - 0.2) < 1e-6,
        "2 x 0.6 - 1: where both are right, they agree",
        "let one be right where the other is wrong, as often as possible; what is left?",
    )


def check_7_3(answer: object) -> None:
    """Chapter 7: a function that plants a checkerboard of a given energy into an attribution."""
    if _open(answer):
        return None
    if not callable(answer):
        return _hint("hand over the function itself, without calling it")
    for scale, share in ((1.0, 0.5), (1.0, 0.2), (30.0, 0.8)):
        noise = scale * torch.randn(3, 16, 32, 32, generator=torch.Generator().manual_seed(0))
        planted = answer(noise.clone(), share)
        if not isinstance(planted, Tensor) or planted.shape != noise.shape:
            return _hint(f"return an attribution of the shape you were given, {tuple(noise.shape)}")
        found = float(checkerboard_energy(planted).mean())
        if abs(found - share) > 0.05:
            return _hint(f"asked for {share:g} in noise of standard deviation {scale:g}, the energy is {found:.2f}")
    _verdict(True, "of the variance v + h^2 of map and grid together, h^2 is the grid's, whatever the map's scale", "")


def check_8_1(answer: object) -> None:
    """Chapter 8: the area under an insertion curve of four steps."""
    if _open(answer):
        return None
    number = _numbers(answer, 1)
    if number is not None and abs(number[0] - 0.52) < 1e-6:
        return _hint("that is the mean of the five scores; the first and the last stand at an end and count half")
    _verdict(
        number is not None and abs(number[0] - 0.525) < 1e-6,
        "a quarter of 0/2 + 0.2 + 0.6 + 0.8 + 1/2",
        "the trapezoid rule: each step is as wide as it is, and as high as the mean of its two ends",
    )


def check_8_2(answer: object) -> None:
    """Chapter 8: which maps have the insertion curve of M."""
    if _open(answer):
        return None
    given = answer if isinstance(answer, list | tuple | set) else [answer]
    letters = {letter for letter in "".join(map(str, given)).lower() if letter.isalpha()}
    if "c" in letters or "e" in letters:
        return _hint("put the values -2, 1, 3 in order, then their negatives, or their magnitudes, in the same order")
    _verdict(
        letters == {"a", "b", "d"},
        "an increasing function changes the values and not their order, and the curve sees the order alone",
        "the curve depends only on which pixel comes first, second, third; there is more than one",
    )


def check_8_3(answer: object) -> None:
    """Chapter 8: Spearman's rank correlation of two maps."""
    if _open(answer):
        return None
    if not callable(answer):
        return _hint("hand over the function itself, without calling it")
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 7, 9, generator=generator)
    for title, one, other in (("two maps", a, a + b), ("a map and its cube", a, a**3), ("opposites", a, -a)):
        wanted = float(rank_correlation(one[None], other[None]))
        found = _numbers(answer(one, other), 1)
        if found is None:
            return _hint("return one number")
        if abs(found[0] - wanted) > 1e-3:
            return _hint(f"for {title} the rank correlation is {wanted:.3f}, yours is {found[0]:.3f}")
    _verdict(True, "the correlation of the ranks, which an increasing function leaves alone", "")


def check_9_1(answer: object) -> None:
    """Chapter 9: how far nearest enlargement moves the units of a layer of stride 8."""
    if _open(answer):
        return None
    number = _numbers(answer, 1)
    if number is not None and abs(number[0]) == 4:
        return _hint("nearly: the cell of unit 0 has the pixels 0 to 7; which number lies in their middle?")
    _verdict(
        number is not None and abs(abs(number[0]) - 3.5) < 1e-6,
        "the unit stands at pixel 8 i, and the middle of its cell of eight pixels is 8 i + 3.5",
        "where does unit 0 stand, and where is the middle of the first eight pixels?",
    )


def check_9_2(answer: object) -> None:
    """Chapter 9: a hit rate between chance and perfection."""
    if _open(answer):
        return None
    number = _numbers(answer, 1)
    if number is not None and abs(number[0] - 0.3) < 1e-6:
        return _hint("0.3 above chance is right; how much could it be above chance at the most?")
    _verdict(
        number is not None and abs(number[0] - 0.6) < 1e-6,
        "(0.8 - 0.5) / (1 - 0.5)",
        "chance is the share of the picture that the box covers; it should come out as 0, and perfection as 1",
    )


def check_9_3(answer: object) -> None:
    """Chapter 9: the centre of mass of a layer's map, in pixels of the picture."""
    if _open(answer):
        return None
    if not callable(answer):
        return _hint("hand over the function itself, without calling it")
    for shape, stride, offset in (((8, 8), 8, 0.0), ((4, 6), 16, 7.5), ((5, 5), 1, 0.0)):
        m = torch.rand(shape, generator=torch.Generator().manual_seed(stride))
        centre = [
            offset + stride * float((m.sum(1 - axis) * torch.arange(shape[axis])).sum() / m.sum()) for axis in (0, 1)
        ]
        found = _numbers(answer(m, stride, offset), 2)
        if found is None:
            return _hint("return two numbers, the row and the column")
        if max(abs(a - b) for a, b in zip(found, centre, strict=True)) > 1e-2:
            return _hint(
                f"for a map {shape} of stride {stride} and offset {offset:g} the centre is "
                f"({centre[0]:.2f}, {centre[1]:.2f}), yours is ({found[0]:.2f}, {found[1]:.2f})"
            )
    _verdict(True, "offset + stride x index, weighted by the map", "")


def check_10_1(answer: object) -> None:
    """Chapter 10: how many looks two seeds need to agree by 0.9, when ten give 0.5."""
    if _open(answer):
        return None
    number = _numbers(answer, 1)
    if number == [18]:
        return _hint("the correlation does not grow in proportion to n: it can never pass 1")
    _verdict(
        number is not None and abs(number[0] - 90) < 1e-6,
        "from 0.5 at ten looks, one look with another correlates by 1/11, and n / (n + 10) is 0.9 at n = 90",
        "find the correlation of single looks first, from n = 10; then solve for n",
    )


def check_10_2(answer: object) -> None:
    """Chapter 10: the mean gradient over noisy copies."""
    if _open(answer):
        return None
    if not callable(answer):
        return _hint("hand over the function itself, without calling it")
    generator = torch.Generator().manual_seed(1)
    x, weights = torch.randn(2, 3, 4, generator=generator)
    cases = {
        "a linear function": (lambda z: (weights * z).sum(), weights, 1e-4),
        "the sum of squares": (lambda z: z.square().sum(), 2 * x, 0.15),
        # E 3 (x + e)^2 = 3 (x^2 + sigma^2): the gradient of the smoothed function, not that of the function.
        "the sum of cubes": (lambda z: z.pow(3).sum(), 3 * (x.square() + 0.25), 0.9),
    }
    before = x.clone()
    for title, (f, wanted, tolerance) in cases.items():
        found = answer(f, x, 0.5, 2000, 0)
        if not isinstance(found, Tensor) or found.shape != x.shape:
            return _hint("return one gradient of the shape of x")
        if not bool(torch.isfinite(found).all()) or float((found - wanted).abs().max()) > tolerance:
            return _hint(f"for {title} the mean gradient is off")
    if torch.equal(answer(cases["the sum of squares"][0], x, 0.5, 3, 0), 2 * x):
        return _hint("without any noise it is the plain gradient")
    if not torch.equal(x, before):
        return _hint("it changes x itself: make a new picture for every look")
    _verdict(True, "the gradient of the function smoothed with a Gaussian", "")


def check_10_3(answer: object) -> None:
    """Chapter 10: the share of a grid in one look and in the mean of many."""
    if _open(answer):
        return None
    numbers = _numbers(answer, 2)
    if numbers is not None and abs(numbers[0] - 0.1) < 1e-6 and abs(numbers[1] - 0.1) < 1e-6:
        return _hint("the rest is drawn anew in every look, so a mean of 81 has less of it")
    if numbers is not None and abs(numbers[0] - 1 / 9) < 1e-6:
        return _hint("the share is of the whole variance, grid and rest together")
    _verdict(
        numbers is not None and abs(numbers[0] - 0.1) < 1e-6 and abs(numbers[1] - 0.9) < 1e-6,
        "1 / (1 + 9), and 1 / (1 + 9/81): averaging uncovers what does not change",
        "the variance of the mean of 81 independent values is an 81st of theirs; the grid's stays",
    )


def check_11_1(answer: object) -> None:
    """Chapter 11: entries of an outer product, and the numbers that its norm needs."""
    if _open(answer):
        return None
    numbers = _numbers(answer, 2)
    if numbers is not None and numbers[0] == 256 * 9:
        return _hint("that is one factor; its product with the other has an entry for each pair")
    if numbers is not None and numbers[0] == 256 * 256 * 9 and numbers[1] == 2:
        return _hint("two norms, yes, but of what is that of the patch made, when each position has its norm already?")
    _verdict(
        numbers == [256 * 256 * 9, 10],
        "256 x 2304 entries, and ten norms: that of the gradient, and those of x at nine positions",
        "there is an entry for every entry of the gradient and every one of the patch; and what does its norm need?",
    )


def check_11_2(answer: object) -> None:
    """Chapter 11: the norm of the positive part of an outer product."""
    if _open(answer):
        return None
    if not callable(answer):
        return _hint("hand over the function itself, without calling it")
    generator = torch.Generator().manual_seed(0)
    g, x = torch.randn(2, 2, 5, 3, 4, generator=generator)
    found = answer(g, x)
    if not isinstance(found, Tensor) or found.shape != (2, 3, 4):
        return _hint("return one number a position, shape (N, H, W)")
    wanted = extract_aggregate(x, g, "conv1x1", "positive_norm")
    if torch.allclose(found, (g.clamp(min=0) * x.clamp(min=0)).square().sum(1).sqrt(), atol=1e-4):
        return _hint("that is the scaling's contribution; here every channel of g meets every channel of x")
    if torch.allclose(found, g.clamp(min=0).norm(dim=1) * x.clamp(min=0).norm(dim=1), atol=1e-4):
        return _hint("a product is positive in one more case")
    _verdict(
        torch.allclose(found, wanted, atol=1e-4),
        "both factors positive, or both negative",
        "when is a product positive? Add the squares of those cases, and factorise each",
    )


def check_11_3(answer: object) -> None:
    """Chapter 11: what doubling one layer's map does to a geometric mean, without and with scaling."""
    if _open(answer):
        return None
    numbers = _numbers(answer, 2)
    if numbers is not None and abs(numbers[0] - 2) < 1e-6:
        return _hint("that would be the product; the mean takes the fourth root of it")
    _verdict(
        numbers is not None and abs(numbers[0] - 2**0.25) < 5e-3 and abs(numbers[1] - 1) < 1e-6,
        "the fourth root of 2; and scaling to [0, 1] undoes any factor",
        "raise the factor to the layer's weight; and what does scaling to [0, 1] make of a factor?",
    )


def check_12_1(answer: object) -> None:
    """Chapter 12: enrichment from a share of saliency and a share of area."""
    if _open(answer):
        return None
    number = _numbers(answer, 1)
    if number is not None and abs(number[0] - 0.4) < 1e-6:
        return _hint("turn it round: more saliency on less area is more than 1")
    if number is not None and abs(number[0] - 0.3) < 1e-6:
        return _hint("a difference depends on how large the structure is; divide instead")
    _verdict(
        number is not None and abs(number[0] - 2.5) < 1e-6,
        "0.5 / 0.2: two and a half times what a map without any preference puts there",
        "divide the share of the saliency by what a map that is the same everywhere would put there",
    )


def check_12_2(answer: object) -> None:
    """Chapter 12: the average precision of four pixels."""
    if _open(answer):
        return None
    number = _numbers(answer, 1)
    if number is not None and abs(number[0] - 0.5) < 1e-6:
        return _hint("that is the share of nucleus pixels, which a random map scores")
    _verdict(
        number is not None and abs(number[0] - 5 / 6) < 5e-3,
        "precision is 1 at the first nucleus pixel and 2/3 at the second, and each brings half of the recall",
        "sort the pixels by value; at each nucleus pixel, which share of those up to it are nucleus pixels?",
    )


def check_12_3(answer: object) -> None:
    """Chapter 12: by how much a mark moves the logit."""
    if _open(answer):
        return None
    if not callable(answer):
        return _hint("hand over the function itself, without calling it")
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(3 * 4 * 4, 1, generator=generator)
    images, marked = torch.randn(2, 5, 3, 4, 4, generator=generator)

    def model(x: Tensor) -> Tensor:
        return x.flatten(1) @ weights

    found = _numbers(answer(model, images, marked), 1)
    wanted = float((model(marked) - model(images)).mean())
    if found is None:
        return _hint("return one number, the mean over the pictures")
    if abs(found[0] + wanted) < 1e-4:
        return _hint("positive should mean that the mark speaks for tumour")
    if abs(found[0] - float((model(marked).sigmoid() - model(images).sigmoid()).mean())) < 1e-4:
        return _hint("probabilities saturate: a picture that is at 0.99 already cannot show the jump; take the logits")
    _verdict(
        abs(found[0] - wanted) < 1e-4,
        "in logits, with sign, picture by picture",
        "the logit with the mark minus that of the same picture without it, averaged over the pictures",
    )


def check_13_1(answer: object) -> None:
    """Chapter 13: how much light passes half the thickness."""
    if _open(answer):
        return None
    number = _numbers(answer, 1)
    if number is not None and number[0] in (2, 0.02):
        return _hint("not twice as much light: the density halves, and the density is a logarithm")
    _verdict(
        number is not None and (abs(number[0] - 0.1) < 1e-6 or abs(number[0] - 10) < 1e-6),
        "the density falls from 2 to 1, and 10 to the power of minus 1 is a tenth",
        "which optical density lets a hundredth through? Halve it, and go back to intensities",
    )


def check_13_2(answer: object) -> None:
    """Chapter 13: tiles along one side of a slide."""
    if _open(answer):
        return None
    number = _numbers(answer, 1)
    if number == [98]:
        return _hint("that would be enough without any overlap; how far apart do neighbours begin?")
    if number == [111]:
        return _hint("111 steps are needed, and one tile more than there are steps")
    _verdict(
        number == [112],
        "tiles begin 896 pixels apart; 111 steps bring the last one to the edge, and there is one more tile than steps",
        "how far apart do two neighbours begin, and where must the last one begin at the latest?",
    )


def check_13_3(answer: object) -> None:
    """Chapter 13: two maps of one overlap, blended."""
    if _open(answer):
        return None
    if not callable(answer):
        return _hint("hand over the function itself, without calling it")
    left, right = torch.rand(2, 3, 9, generator=torch.Generator().manual_seed(0))
    found = answer(left, right)
    if not isinstance(found, Tensor) or found.shape != left.shape:
        return _hint("return one map of the overlap, of the shape of both")
    weight = torch.linspace(0, 1, 9)
    wanted = (1 - weight) * left + weight * right
    if torch.allclose(found, weight * left + (1 - weight) * right, atol=1e-4):
        return _hint("at its left end the overlap lies deep inside the left tile: there the left map is the good one")
    if torch.allclose(found, (left + right) / 2, atol=1e-4):
        return _hint("half and half leaves a step at both ends of the overlap")
    _verdict(
        torch.allclose(found, wanted, atol=1e-4),
        "the weights add up to 1 everywhere, so two maps that agree stay as they are",
        "from all left in the first column to all right in the last, in equal steps",
    )
