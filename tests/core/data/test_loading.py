"""Errors from reading processes arrive as they were raised."""

import pytest
import torch
from torch.utils.data import DataLoader, Dataset, Subset

from tatscli.core.data.loading import Sheltered, checked, collate
from tatscli.errors import DataError


class Breaking(Dataset[torch.Tensor]):
    def __init__(self, at: int) -> None:
        self.at = at

    def __len__(self) -> int:
        return 6

    def __getitem__(self, place: int) -> torch.Tensor:
        if place == self.at:
            raise DataError("clip 3 cannot be decoded", "leave out --strict")
        return torch.tensor(place)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_of_a_worker_keeps_its_message_and_hint(workers: int) -> None:
    data = Subset(Breaking(at=3), range(6))
    loader = iter(DataLoader(Sheltered(data), 2, num_workers=workers, collate_fn=collate))
    assert checked(next(loader)).tolist() == [0, 1]
    with pytest.raises(DataError) as caught:
        checked(next(loader))
    assert caught.value.message == "clip 3 cannot be decoded"
    assert caught.value.hint == "leave out --strict"
    assert checked(next(loader)).tolist() == [4, 5]


@pytest.mark.parametrize("workers", [0, 2])
def test_other_errors_are_left_as_they_are(workers: int) -> None:
    loader = DataLoader(Sheltered(Breaking(at=6)), sampler=[0, "no place"], num_workers=workers)
    with pytest.raises(TypeError):
        list(loader)
