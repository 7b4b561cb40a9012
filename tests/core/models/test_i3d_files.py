"""One network from three containers; files that are refused, and why; what tells the network."""

from pathlib import Path

import pytest
import torch

from tatscli.core.models.i3d import I3D, random_weights
from tatscli.core.models.i3d_files import load_i3d
from tatscli.errors import CheckpointError


def test_weights_survive_the_file(tmp_path: Path) -> None:
    weights = random_weights(0)
    torch.save(weights, tmp_path / "i3d.pt")
    loaded, direct = load_i3d(tmp_path / "i3d.pt", 1e-3), I3D(weights, 1e-3)
    for name, tensor in direct.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)


def test_file_of_another_layout_is_refused_with_ten_differences(tmp_path: Path) -> None:
    weights = random_weights(0)
    for name in list(weights)[:11]:
        del weights[name]
    weights["logits.conv3d.bias"] = torch.zeros(600)
    torch.save(weights, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match="other.pt") as caught:
        load_i3d(tmp_path / "other.pt", 1e-3)
    assert "12 differ" in caught.value.message
    assert caught.value.message.count("expected") == 10 + 1


def test_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "torn.pt").write_bytes(b"PK\x03\x04 and then nothing")
    with pytest.raises(CheckpointError, match="torn.pt"):
        load_i3d(tmp_path / "torn.pt", 1e-3)
