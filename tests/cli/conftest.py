"""Stop signs in the place of use cases."""

from collections.abc import Callable

import pytest


@pytest.fixture
def receive(monkeypatch, unchecked) -> Callable[[str], list]:
    """Puts a stop sign in the place of a use case; what reaches it is collected."""

    def replace(use_case: str) -> list:
        received: list = []

        def stop(*arguments: object, **_: object) -> None:
            received.append(arguments)
            raise SystemExit(0)

        monkeypatch.setattr(use_case, stop)
        return received

    return replace
