from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ranker.batch import collate
from ranker.catalogue import Catalogue, Item
from ranker.config import Config, parse
from ranker.errors import CheckpointError
from ranker.events import Event, Interaction, Ranking, Shown
from ranker.evidence import EMPTY, Act, Evidence
from ranker.inference import Inference
from ranker.join import Example, Joiner
from ranker.learner import Learner, StepReport, train
from ranker.metrics import auc

ITEMS = 40


def config(**more: object) -> Config:
    objectives = more.pop("objectives", [{"name": "click", "event": "click"}])
    fields = {"item": {"topic": "category"}, "request": {"mood": "category"}}
    return parse({"objectives": objectives, "fields": fields, "scale": "tiny", **more})


TWO = [
    {"name": "click", "event": "click", "biased": True},
    {"name": "stay", "event": "stay", "kind": "value", "weight": 0.5},
]


def catalogue(of: Config) -> Catalogue:
    found = Catalogue(of)
    for place in range(ITEMS):
        found.put(Item(f"i{place}", {"topic": f"t{place % 4}"}, 0))
    return found


def example(
    generator: np.random.Generator,
    *,
    time: int = 1000,
    label: Callable[[str, str], float] | None = None,
    rows: int = 6,
    objectives: int = 1,
    **more: object,
) -> Example:
    """A slate of random items; by default an item of the topic that the mood names is clicked."""
    mood = f"t{generator.integers(4)}"
    items = tuple(f"i{place}" for place in generator.choice(ITEMS, rows, replace=False))
    clicked = label or (lambda item, mood: float(f"t{int(item[1:]) % 4}" == mood))
    labels_NT = np.zeros((rows, objectives), np.float32)
    labels_NT[:, 0] = [clicked(item, mood) for item in items]
    found = Example(
        ranking=f"r{time}",
        user="u",
        time=time,
        evidence=EMPTY,
        request={"mood": mood},
        items=items,
        positions=np.arange(rows, dtype=np.int32),
        labels_NT=labels_NT,
        mask_NT=np.ones_like(labels_NT),
    )
    return replace(found, **more)  # type: ignore[arg-type]


def batches(count: int, seed: int = 0, size: int = 16, **more: object) -> list[list[Example]]:
    generator = np.random.default_rng(seed)
    return [
        [example(generator, time=1000 * (size * step + place + 1), **more) for place in range(size)]  # type: ignore[arg-type]
        for step in range(count)
    ]


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def measured(learner: Learner, known: Catalogue, seed: int = 99) -> float:
    held = [e for batch in batches(8, seed) for e in batch]
    chances = np.concatenate(learner.predict(held, known))
    return auc(np.concatenate([e.labels_NT for e in held])[:, 0], chances[:, 0])


def test_a_separable_stream_is_learned() -> None:
    of = config()
    learner, known = Learner(of), catalogue(of)
    untrained = measured(learner, known)
    reports = [learner.learn(batch, known) for batch in batches(120)]
    losses = [report.losses["click"] for report in reports]
    assert np.mean(losses[-10:]) < 0.7 * np.mean(losses[:10])
    assert untrained < 0.65
    assert measured(learner, known) > 0.95
    assert all(report.finite for report in reports)


def test_an_item_that_becomes_popular_rises_within_few_steps() -> None:
    of = config()
    learner, known = Learner(of), catalogue(of)
    only = {"label": lambda item, mood: float(item == "i7")}
    for batch in batches(40, **only):
        learner.learn(batch, known)
    one = example(np.random.default_rng(5), time=10**6, items=("i7", "i8"), positions=np.array([0, 1], np.int32))
    one = replace(one, labels_NT=np.zeros((2, 1), np.float32), mask_NT=np.ones((2, 1), np.float32))
    (chances_NT,) = learner.predict([one], known)
    assert chances_NT[0, 0] > 2 * chances_NT[1, 0]


def test_the_base_utility_learns_to_retrieve() -> None:
    of = config()
    learner, known = Learner(of), catalogue(of)
    liked = {"label": lambda item, mood: float(int(item[1:]) < 8)}
    reports = [learner.learn(batch, known) for batch in batches(100, **liked)]
    assert reports[-1].retrieval < reports[0].retrieval
    inference = Inference(of, learner.weights())
    inference.attach(known)
    found = inference.retrieve(inference.taste(EMPTY, 10**6), 8).rows
    assert np.mean([row < 8 for row in found]) > 0.7


@pytest.mark.parametrize("objectives", [None, TWO])
def test_learning_after_a_reload_equals_uninterrupted_learning_bit_for_bit(objectives: list[object] | None) -> None:
    of = config(**({"objectives": objectives} if objectives else {}))
    stream = [e for batch in batches(14, size=8, objectives=len(of.objectives)) for e in batch]
    opened = [replace(e, opening=True, mask_NT=0 * e.mask_NT) for e in stream]
    steps = [opened[at : at + 8] + stream[max(0, at - 8) : at] for at in range(0, len(stream), 8)]
    known = catalogue(of)
    straight = Learner(of)
    for step in steps[:7]:
        straight.learn(step, known)
    state = {name: tensor.clone() for name, tensor in straight.state().items()}
    again = Learner(of)
    again.load(state)
    for step in steps[7:]:
        assert straight.learn(step, known) == again.learn(step, known)
    assert same(straight.state(), again.state())


def test_the_same_seed_gives_the_same_weights() -> None:
    of, known = config(), catalogue(config())
    left, right = Learner(of), Learner(of)
    for batch in batches(3):
        left.learn(batch, known)
        right.learn(batch, known)
    assert same(left.state(), right.state())


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_label_that_is_not_finite_skips_the_step(bad: float) -> None:
    of = config(objectives=TWO)
    learner, known = Learner(of), catalogue(of)
    learner.learn(batches(1, objectives=2)[0], known)
    before = learner.weights()
    spoilt = batches(1, seed=3, objectives=2)[0]
    spoilt[2].labels_NT[1, 1] = bad
    report = learner.learn(spoilt, known)
    assert not report.finite
    assert same(before, learner.weights())
    assert learner.learn(batches(1, seed=4, objectives=2)[0], known).finite


@settings(max_examples=10)
@given(st.floats(allow_nan=True, allow_infinity=True, width=32), st.integers(0, 15), st.integers(0, 5))
def test_a_masked_label_changes_nothing(label: float, slate: int, row: int) -> None:
    of = config(objectives=TWO)
    known = catalogue(of)
    states = []
    for value in (0.0, label):
        learner = Learner(of)
        batch = batches(1, objectives=2)[0]
        for objective in (0, 1):
            batch[slate].mask_NT[row, objective] = 0
            batch[slate].labels_NT[row, objective] = value
        learner.learn(batch, known)
        states.append(learner.state())
    assert same(*states)


def test_a_few_slates_are_learned_as_a_newcomers() -> None:
    learner = Learner(config())
    known = Evidence(fields={"mood": "t1"}, history=(Act("i1", "click", 1),), recent=("e1",))
    slates = [example(np.random.default_rng(0), evidence=known)] * 4000
    found = learner._unknown(slates)
    new = [one for one in found if one.evidence is not known]
    assert 0.02 < len(new) / len(slates) < 0.04
    assert all(one.evidence == Evidence(fields=known.fields) for one in new)
    assert all(one.labels_NT is slates[0].labels_NT for one in new)


def test_closing_and_opening_examples_teach_nothing() -> None:
    of = config()
    learner, known = Learner(of), catalogue(of)
    before = learner.weights()
    (batch,) = batches(1)
    # a closed slate still compares what was wanted with what was skipped; here nothing was wanted
    closed = [replace(e, closing=True, labels_NT=0 * e.labels_NT) for e in batch]
    report = learner.learn(closed + [replace(e, opening=True) for e in batch], known)
    assert (report.rows, report.examples) == (0, 0)
    assert same(before, learner.weights())


def test_rows_outside_the_batch_are_untouched() -> None:
    of = config()
    learner, known = Learner(of), catalogue(of)
    for batch in batches(3):
        learner.learn(batch, known)
    before = learner.weights()
    (batch,) = batches(1, seed=7, size=2)
    touched = collate(batch, known, learner.encoder).touched_V
    learner.learn(batch, known)
    after = learner.weights()
    others = torch.ones(len(after["table_VD"]), dtype=torch.bool)
    others[touched] = False
    for name in ("table_VD", "wide_VT"):
        assert torch.equal(before[name][others], after[name][others])
        assert not torch.equal(before[name][touched], after[name][touched])


def test_labels_come_with_the_counts_that_were_there_when_the_slate_was_shown() -> None:
    of = config(objectives=TWO)
    known = catalogue(of)
    (slate,) = batches(1, size=1, objectives=2)[0]
    opening = replace(slate, opening=True, mask_NT=0 * slate.mask_NT)
    click = replace(slate, mask_NT=slate.mask_NT * [1, 0])
    stay = replace(slate, mask_NT=slate.mask_NT * [0, 1])

    noted, unnoted = Learner(of), Learner(of)
    for learner, first in ((noted, [opening]), (unnoted, [])):
        learner.learn([*first, click], known)
    batch = collate([stay], known, noted.encoder)
    assert float(noted._counts([stay], batch).abs().sum()) == 0
    assert float(unnoted._counts([stay], batch).abs().sum()) > 0


def test_a_positive_without_a_ranking_meets_drawn_negatives() -> None:
    of = config()
    learner, known = Learner(of), catalogue(of)
    generator = np.random.default_rng(0)
    for step in range(60):
        liked = [f"i{generator.integers(8)}" for _ in range(16)]
        direct = [
            Example(
                ranking="",
                user="u",
                time=1000 * step + 1,
                evidence=EMPTY,
                request={},
                items=(item,),
                positions=np.array([-1], np.int32),
                labels_NT=np.ones((1, 1), np.float32),
                mask_NT=np.ones((1, 1), np.float32),
            )
            for item in liked
        ]
        report = learner.learn(direct, known)
        assert report.rows == 16
    (chances_NT,) = learner.predict(
        [replace(direct[0], items=("i0", "i30"), positions=np.array([-1, -1], np.int32))], known
    )
    assert chances_NT[0, 0] > 3 * chances_NT[1, 0]


def test_values_are_predicted_in_their_own_unit() -> None:
    of = config(objectives=[{"name": "stay", "event": "stay", "kind": "value"}])
    learner, known = Learner(of), catalogue(of)
    seconds = {"label": lambda item, mood: 300.0 if f"t{int(item[1:]) % 4}" == mood else 100.0}
    for batch in batches(100, **seconds):
        learner.learn(batch, known)
    held = batches(4, seed=9, **seconds)[0]
    chances, labels = np.concatenate(learner.predict(held, known)), np.concatenate([e.labels_NT for e in held])
    assert np.abs(chances - labels).mean() < 40


def test_what_serving_scores_is_what_the_learner_predicts() -> None:
    of = config()
    learner, known = Learner(of), catalogue(of)
    for batch in batches(20):
        learner.learn(batch, known)
    inference = Inference(of, learner.weights())
    inference.attach(known)
    (one,) = batches(1, seed=11, size=1)[0]
    later = replace(one, time=10**6)
    scores = inference.score(
        inference.taste(EMPTY, later.time),
        user={},
        request=later.request,
        rows=known.find(later.items),
        now=later.time,
    )
    np.testing.assert_allclose(scores.probabilities_NT, learner.predict([later], known)[0], atol=1e-5)


def test_a_state_of_another_configuration_is_refused() -> None:
    state = Learner(config()).state()
    with pytest.raises(CheckpointError, match="another configuration"):
        Learner(config(objectives=TWO)).load(state)


def log(count: int, seed: int = 0) -> list[Event]:
    generator = np.random.default_rng(seed)
    events: list[Event] = []
    for place in range(count):
        now = 10_000 * (place + 1)
        items = [f"i{item}" for item in generator.choice(ITEMS, 6, replace=False)]
        shown = [Shown(id=item) for item in items]
        events.append(Ranking(id=f"r{place}", timestamp=now, user=f"u{place % 9}", items=shown))
        for item in items:
            if int(item[1:]) < 10:
                events.append(
                    Interaction(
                        id=f"c{place}{item}",
                        timestamp=now + 1,
                        user=f"u{place % 9}",
                        item=item,
                        type="click",
                        ranking=f"r{place}",
                    )
                )
    return events


def test_a_log_is_learned_in_steps_of_so_many_rows() -> None:
    of = config()
    learner, joiner = Learner(of), Joiner(of, opening=True)
    reports: list[StepReport] = list(train(log(100), learner, joiner, rows=60))
    assert sum(report.rows for report in reports) == 600
    assert all(60 <= report.rows <= 72 for report in reports[:-1])
    assert joiner.flush() == []
