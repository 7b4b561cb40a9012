"""The published files themselves; half a gigabyte from the network, run with -m network.

They are fetched to the user's cache, where a second run finds them.
"""

from typing import get_args

import pytest
import torch

from tatscli.config.weights import FetchedName
from tatscli.core.models.i3d_files import read_i3d, unofficial, weights_digest
from tatscli.core.weights import FILES, I3D_FILES, Status, fetch, verify

pytestmark = pytest.mark.network


@pytest.mark.parametrize("name", get_args(FetchedName))
def test_files_are_where_they_are_said_to_be_and_what_they_are_said_to_be(name: str) -> None:
    path = fetch(name, lambda done, total: None)
    assert verify(name).status is Status.VERIFIED
    assert FILES[name].size in (None, path.stat().st_size)


@pytest.mark.parametrize("name", I3D_FILES)
def test_the_tensors_are_those_of_the_table(name: str) -> None:
    assert unofficial(read_i3d(fetch(name, lambda done, total: None))) == []


def test_three_containers_hold_one_network() -> None:
    networks = [read_i3d(fetch(name, lambda done, total: None)) for name in I3D_FILES]
    assert len({weights_digest(network) for network in networks}) == 1
    for name, tensor in networks[0].items():
        assert all(torch.equal(network[name], tensor) for network in networks[1:])
