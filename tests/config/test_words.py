"""How numbers are said."""

import pytest

from tatscli.config.words import counted, span


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
