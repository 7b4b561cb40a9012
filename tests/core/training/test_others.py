"""The first process ends as the others did."""

import signal
from types import SimpleNamespace
from typing import Any

import pytest

from tatscli.core.training.others import Others
from tatscli.errors import RunError


def ended(*codes: int | None) -> Others:
    others = Others()
    others._processes = [SimpleNamespace(poll=lambda code=code: code) for code in codes]  # type: ignore[misc]
    return others


@pytest.mark.parametrize(
    ("code", "raised"),
    [
        (130, KeyboardInterrupt),
        (143, SystemExit),
        (-signal.SIGTERM, SystemExit),
        (-signal.SIGKILL, RunError),
        (1, RunError),
    ],
)
def test_one_that_ended_early_is_followed(code: int, raised: Any) -> None:
    with pytest.raises(raised) as found:
        ended(None, code).look()
    if raised is SystemExit:
        assert found.value.code == 128 + signal.SIGTERM
    if raised is RunError:
        assert f"another process of this command ended with code {code}" in str(found.value)


def test_one_that_did_its_work_may_end_but_not_before_all_have_met() -> None:
    ended(None, 0).look()
    with pytest.raises(RunError, match="ended with code 0"):
        ended(None, 0).look(early=True)
