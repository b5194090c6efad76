import numpy as np
import pytest

from ranker import config
from ranker.evidence import EMPTY
from ranker.join import Example
from streaming.progress import Progress, Rate

CONFIG = config.parse(
    {
        "objectives": [
            {"name": "click", "event": "click"},
            {"name": "seconds", "event": "dwell", "kind": "value"},
            {"name": "like", "event": "like"},
        ]
    }
)


def example(labels: list[float], served: list[float] | None = None) -> Example:
    def table(values: list[float]) -> np.ndarray:
        return np.repeat(np.array(values, np.float32)[:, None], 3, 1)

    return Example(
        ranking="r",
        user="u",
        time=0,
        evidence=EMPTY,
        request={},
        items=tuple("abcdefgh"[: len(labels)]),
        positions=np.arange(len(labels), dtype=np.int32),
        labels_NT=table(labels),
        mask_NT=np.array([[1, 1, 0]] * len(labels), np.float32),
        served_NT=None if served is None else table(served),
        closing=True,
    )


def test_auc_of_served_and_learner_stand_apart_and_need_both_classes() -> None:
    progress = Progress(CONFIG)
    assert progress.served() == progress.learner() == {}
    progress.add(example([1, 0], [0.9, 0.1]), None)
    progress.add(example([1, 0]), np.full((2, 3), 0.5, np.float32))
    assert progress.served() == {"click": 1.0}
    assert progress.learner() == {"click": 0.5}


def test_the_window_slides() -> None:
    progress = Progress(CONFIG, rows=4)
    progress.add(example([1, 0, 0], [0.1, 0.9, 0.9]), None)
    assert progress.served() == {"click": 0.0}
    progress.add(example([1, 0, 0, 0], [0.9, 0.1, 0.1, 0.1]), None)
    assert progress.served() == {"click": 1.0}


def test_the_rate_is_that_of_the_last_seconds() -> None:
    now = [0.0]
    rate = Rate(lambda: now[0])
    rates = []
    for second in range(1, 20):
        now[0] = float(second)
        rates.append(rate.add(100 if second < 10 else 10))
    assert rates[8] == pytest.approx(100)
    assert rates[-1] == pytest.approx(10)
