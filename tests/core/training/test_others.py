"""The first process ends as the others did."""

import os
import signal
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from tatscli.core.signals import STOPS, held_back
from tatscli.core.training import others as module
from tatscli.core.training.others import Others, together
from tatscli.core.training.placement import Placement
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


def placed(nodes: int) -> Placement:
    return Placement("cpu", 1, nodes, "32-true", "tats")


def test_a_machine_that_never_comes_is_not_waited_for_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "environ", os.environ.copy())
    monkeypatch.setattr(module, "_TIME_TO_FIND", timedelta(seconds=0.3))
    with pytest.raises(RunError, match="1 of 2 processes have come"):
        Others().meet(placed(2))


def test_what_was_started_with_signals_held_back_hears_them_once_the_work_is_done() -> None:
    with held_back(*STOPS):  # as a further process is started
        with together(placed(1), signal.SIGTERM):
            assert module.OTHERS.at_work
        assert not signal.pthread_sigmask(signal.SIG_BLOCK, ()) & set(STOPS)
    assert not module.OTHERS.at_work
