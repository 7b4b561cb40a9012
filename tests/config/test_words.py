"""How numbers are said."""

import math

import pytest

from tatscli.config.words import counted, span, with_error


@pytest.mark.parametrize(
    ("number", "unit", "said"),
    [
        (1, "shard", "1 shard"),
        (0, "shard", "0 shards"),
        (1200, "training clip", "1,200 training clips"),
        (2, "class", "2 classes"),
        (1, "process", "1 process"),
    ],
)
def test_a_number_agrees_with_its_unit(number, unit, said):
    assert counted(number, unit) == said


def test_values_that_read_alike_are_one():
    assert span([30.0, 10.5, 25]) == "10.5 to 30"
    assert span([29.97, 29.9701]) == "29.97"


@pytest.mark.parametrize(
    ("value", "error", "said"),
    [
        (1.72796, 1.04, "1.7 ± 1.0"),
        (27.4445, 6.57, "27.4 ± 6.6"),
        (1234.5, 123.0, "1234 ± 123"),
        (0.123456, 0.002, "0.1235 ± 0.0020"),
        (3.0, None, "3"),
        (1.0, 1e-17, "1 ± 0"),
        (1.0, 0.0, "1 ± 0"),
        (2.5, math.nan, "2.5"),
        (math.inf, math.inf, "inf"),
    ],
)
def test_figures_have_the_digits_that_mean_something(value, error, said):
    assert with_error(value, error) == said
