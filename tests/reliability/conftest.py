"""The fixtures of use cases, and the program as processes of its own."""

from collections.abc import Iterator

import pytest
from program import Start, starting
from tiny_fixtures import *  # noqa: F403  # fixtures are found by name


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts the program; what still runs at the end of the test is killed."""
    with starting() as call:
        yield call
