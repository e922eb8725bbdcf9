"""Checks for the book's exercises: each says whether an answer is right, and why, or hands out a hint.

A check never raises for a wrong answer, and prints one line. The dots that stand in an exercise before it is solved are
no answer, and are met with a friendly word.
"""

from smoothsal_lib.exercises.chapter_1 import check_1_1, check_1_2, check_1_3, check_1_4
from smoothsal_lib.exercises.chapter_2 import check_2_1, check_2_2, check_2_3, check_2_4, check_2_5
from smoothsal_lib.exercises.chapter_3 import check_3_1, check_3_2, check_3_3, check_3_4, check_3_5
from smoothsal_lib.exercises.chapter_4 import check_4_1, check_4_2, check_4_3, check_4_4, check_4_5
from smoothsal_lib.exercises.chapter_5 import check_5_1, check_5_2, check_5_3, check_5_4, check_5_5
from smoothsal_lib.exercises.chapter_6 import check_6_1, check_6_2, check_6_3, check_6_4, check_6_5
from smoothsal_lib.exercises.chapter_7 import check_7_1, check_7_2, check_7_3, check_7_4, check_7_5
from smoothsal_lib.exercises.chapter_8 import check_8_1, check_8_2, check_8_3, check_8_4, check_8_5
from smoothsal_lib.exercises.chapter_9 import check_9_1, check_9_2, check_9_3, check_9_4, check_9_5
from smoothsal_lib.exercises.chapter_10 import check_10_1, check_10_2, check_10_3, check_10_4, check_10_5
from smoothsal_lib.exercises.chapter_11 import check_11_1, check_11_2, check_11_3, check_11_4, check_11_5
from smoothsal_lib.exercises.chapter_12 import check_12_1, check_12_2, check_12_3, check_12_4, check_12_5
from smoothsal_lib.exercises.chapter_13 import check_13_1, check_13_2, check_13_3, check_13_4, check_13_5
from smoothsal_lib.exercises.chapter_14 import check_14_1, check_14_2, check_14_3, check_14_4, check_14_5

__all__ = [
    "check_1_1",
    "check_1_2",
    "check_1_3",
    "check_1_4",
    "check_2_1",
    "check_2_2",
    "check_2_3",
    "check_2_4",
    "check_2_5",
    "check_3_1",
    "check_3_2",
    "check_3_3",
    "check_3_4",
    "check_3_5",
    "check_4_1",
    "check_4_2",
    "check_4_3",
    "check_4_4",
    "check_4_5",
    "check_5_1",
    "check_5_2",
    "check_5_3",
    "check_5_4",
    "check_5_5",
    "check_6_1",
    "check_6_2",
    "check_6_3",
    "check_6_4",
    "check_6_5",
    "check_7_1",
    "check_7_2",
    "check_7_3",
    "check_7_4",
    "check_7_5",
    "check_8_1",
    "check_8_2",
    "check_8_3",
    "check_8_4",
    "check_8_5",
    "check_9_1",
    "check_9_2",
    "check_9_3",
    "check_9_4",
    "check_9_5",
    "check_10_1",
    "check_10_2",
    "check_10_3",
    "check_10_4",
    "check_10_5",
    "check_11_1",
    "check_11_2",
    "check_11_3",
    "check_11_4",
    "check_11_5",
    "check_12_1",
    "check_12_2",
    "check_12_3",
    "check_12_4",
    "check_12_5",
    "check_13_1",
    "check_13_2",
    "check_13_3",
    "check_13_4",
    "check_13_5",
    "check_14_1",
    "check_14_2",
    "check_14_3",
    "check_14_4",
    "check_14_5",
]
