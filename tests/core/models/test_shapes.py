import numpy as np
import pytest
import torch

from tatscli.core.models.shapes import as_ids, check_shape


@pytest.mark.parametrize("shape", [(2, 3), (2, 3, 4, 1), (2, 4, 4), (2, 3, 0)])
def test_another_shape_is_told_with_the_expected_one(shape):
    check_shape("clip", torch.zeros(2, 3, 7), "B", 3, "T")
    with pytest.raises(ValueError, match=r"clip of shape \(2, .*\), expected \(B, 3, T\)"):
        check_shape("clip", torch.zeros(shape), "B", 3, "T")


def test_what_is_no_tensor_is_told_as_what_it_is():
    with pytest.raises(TypeError, match="clip is a numpy.ndarray, expected a tensor"):
        check_shape("clip", np.zeros((2, 3)), "B", 3)


def test_ids_are_whole_numbers_of_any_width():
    assert as_ids("codes", torch.ones(2, dtype=torch.uint16), "L").dtype == torch.int64
    with pytest.raises(ValueError, match=r"codes of torch.float32, expected whole numbers"):
        as_ids("codes", torch.ones(2), "L")
