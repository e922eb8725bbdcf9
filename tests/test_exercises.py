"""Every check accepts the right answer in all its forms, and none of the plausible wrong ones."""

import pytest
import torch

from smoothsal_lib import exercises


def displacement(blur, axis=2):
    impulse = torch.zeros(1, 1, 9, 9)
    impulse[0, 0, 4, 4] = 1
    rows = torch.arange(9.0).view(9, 1) if axis == 2 else torch.arange(9.0).view(1, 9)
    out = blur(impulse)[0, 0]
    return (out * rows).sum() / out.sum() - 4


def gap(A, A_star, x, y):
    return (A(x) * y).sum() - (x * A_star(y)).sum()


RIGHT = [
    ("3_1", [2, 2, 1]),
    ("3_1", torch.tensor([2, 2, 1])),
    ("3_2", [1, 2, 1]),
    ("3_2", (0.3, 0.1, -0.2)),
    ("3_3", 0.25),
    ("3_3", "0.25"),
    ("3_3", torch.tensor(0.25)),
    ("5_1", 7.5),
    ("5_1", -7.5),
    ("5_2", [1 / 12, 1 / 6, 1 / 6, 1 / 6, 1 / 6, 1 / 6, 1 / 12]),
    ("5_2", torch.tensor([1, 2, 2, 2, 2, 2, 1]) / 12),
    ("5_3", displacement),
    ("6_1", [32, 9]),
    ("6_2", gap),
    ("6_2", lambda *a: gap(*a).abs()),
    ("6_3", "Both"),
]
WRONG = [
    ("3_1", [2, 1, 2]),
    ("3_1", [3, 3, 3]),
    ("3_1", None),
    ("3_2", [1, 1, 1]),
    ("3_2", [1, 0, -1]),
    ("3_3", 0.75),
    ("3_3", "a quarter?"),
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
]


def said(name, answer, capsys):
    getattr(exercises, f"check_{name}")(answer)
    return capsys.readouterr().out


@pytest.mark.parametrize(("name", "answer"), RIGHT)
def test_right_answers_are_accepted(name, answer, capsys):
    assert said(name, answer, capsys).startswith("Correct: ")


@pytest.mark.parametrize(("name", "answer"), WRONG)
def test_wrong_answers_get_a_hint(name, answer, capsys):
    assert said(name, answer, capsys).startswith("Not yet: ")


@pytest.mark.parametrize("check", [name for name in dir(exercises) if name.startswith("check_")])
@pytest.mark.parametrize("dots", [..., [...]])
def test_dots_are_no_answer_and_no_error(check, dots, capsys):
    getattr(exercises, check)(dots)
    assert capsys.readouterr().out == "Your answer goes in place of the dots.\n"
