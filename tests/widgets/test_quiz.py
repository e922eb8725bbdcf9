"""Every option of a quiz answers back, and a quiz that cannot teach is refused."""

from __future__ import annotations

import pytest
from bs4 import BeautifulSoup

from smoothsal_lib import widgets

TEXT = r"""
A convolution with stride 2 receives a constant gradient.
What does it hand down?
- A constant, for `x < 2` & more.
  Every position would have to meet
  the same sum of taps.
+ A pattern with period $a < 2$.
  Neighbours meet *disjoint* sets of taps.
"""


def test_question_options_and_feedback_are_read():
    quiz = widgets.quiz(TEXT)
    assert quiz.question == "A convolution with stride 2 receives a constant gradient. What does it hand down?"
    assert [option.right for option in quiz.options] == [False, True]
    assert quiz.options[0].feedback == "Every position would have to meet the same sum of taps."


def test_html_has_an_answer_for_every_option():
    page = BeautifulSoup(widgets.quiz(TEXT)._repr_html_(), "html.parser")
    summaries = [summary.get_text() for summary in page.select("summary")]
    assert summaries == ["A constant, for x < 2 & more.", r"A pattern with period \(a < 2\)."]
    assert page.select_one("summary code").get_text() == "x < 2"
    assert page.select_one("summary .math").get_text() == r"\(a < 2\)"
    assert page.select_one("details em").get_text() == "disjoint"
    answers = [p.get_text() for p in page.select("details p")]
    assert answers[0].startswith("No. Every") and answers[1].startswith("Right. Neighbours")
    assert "More than one" not in page.get_text()


def test_several_right_options_are_announced():
    assert "More than one is right" in widgets.quiz(TEXT.replace("- A", "+ A"))._repr_html_()


def test_print_does_not_give_the_answer_away():
    text = repr(widgets.quiz(TEXT))
    assert "B. A pattern" in text and "Neighbours" not in text and "+" not in text


def test_an_answer_shows_when_it_is_asked_for(tmp_path, visit):
    path = tmp_path / "quiz.html"
    path.write_text(f"<meta charset=utf-8>{widgets.quiz(TEXT)._repr_html_()}", "utf-8")
    with visit() as visited:
        page = visited.open(path)
        answer = page.get_by_text("Neighbours meet")
        assert not answer.is_visible()
        page.locator("summary").nth(1).press("Enter")
        assert answer.is_visible() and not page.get_by_text("Every position").is_visible()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "begins with its question"),
        ("+ a\n  because it is so\n- b\n  because it is not", "begins with its question"),
        ("Why?\n+ a\n  because it is right", "'Why.' has 1 options: expected 2 to 6"),
        ("Why?\n+ a\n  because it is right\n- a\n  because it is wrong", "has 2 options: expected 2 to 6 different"),
        ("Why?\n- a\n  because it is so\n- b\n  because it is not", "no right option"),
        ("Why?\n+ a\n  because it is so\n- b\n", "'b' has the feedback ''"),
        ("Why?\n+ a\n  Yes.\n- b\n  because it is not", "'a' has the feedback 'Yes.'"),
    ],
)
def test_a_quiz_that_teaches_nothing_is_refused(text, message):
    with pytest.raises(ValueError, match=message) as caught:
        widgets.quiz(text)
    assert "\n" not in str(caught.value)
