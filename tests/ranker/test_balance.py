from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ranker.balance import AGAIN, EVERYBODY, ROWS, Balance, Known, privileged
from ranker.catalogue import Catalogue, Item
from ranker.config import Config, Method, parse
from ranker.evidence import Act, Answer, Evidence
from ranker.learner import RESERVOIR, Learner
from ranker.reliability import Population
from ranker.slates import Compared, Example
from ranker.teachers import Teachers, named

ITEMS = 20
METHODS: list[Method] = ["reweight", "group-dro", "maxmin", "self-distil", "pareto"]


def config(method: Method = "pareto") -> Config:
    return parse(
        {
            "objectives": [{"name": "like", "event": "like"}],
            "fields": {"item": {"topic": "category"}},
            "groups": ["kind"],
            "scale": "tiny",
            "learning": {"minimum_group": 1},
            "fairness": {"method": method, "discover": False},
        }
    )


class Labels:
    """Users whose name begins with r are rare; those whose name begins with x belong nowhere."""

    def of(self, user: str) -> dict[str, str]:
        return {} if user[0] == "x" else {"kind": "rare" if user[0] == "r" else "usual"}


def catalogue(of: Config) -> Catalogue:
    found = Catalogue(of)
    for place in range(ITEMS):
        found.put(Item(f"i{place}", {"topic": f"t{place % 2}"}, 0))
    return found


def examples(draws: np.random.Generator, count: int, *, rare: float = 0.2, nowhere: bool = False) -> list[Example]:
    """Usual people like even items and rare ones odd items: each tells one grade and one comparison."""
    found = []
    for _ in range(count):
        kind = "x" if nowhere else "r" if draws.random() < rare else "u"
        user, odd = f"{kind}{draws.integers(8)}", kind == "r"
        even_item, odd_item = (f"i{2 * draws.integers(ITEMS // 2) + side}" for side in (0, 1))
        pair = (odd_item, even_item) if odd else (even_item, odd_item)
        common = {
            "ranking": "",
            "user": user,
            "time": int(draws.integers(1000, 2000)),
            "evidence": Evidence(history=(Act(f"i{10 + odd}", "like", 500),), updated=500),
            "request": {},
        }
        one, two = np.ones((1, 1), np.float32), np.zeros((2, 1), np.float32)
        item = odd_item if draws.random() < 0.5 else even_item
        labels_NT = one * float((item == odd_item) == odd)
        found.append(
            Example(items=(item,), positions=np.full(1, -1, np.int32), labels_NT=labels_NT, mask_NT=one, **common)
        )
        alone = np.full(2, -1, np.int32)
        found.append(
            Example(items=pair, positions=alone, labels_NT=two, mask_NT=two, pairs=(Compared(0, 1, 1.0),), **common)
        )
    return found


def learner(method: Method, steps: int = 8, *, seed: int = 0, **more: object) -> Learner:
    found = Learner(config(method))
    found.know(Known(Labels()))
    draws = np.random.default_rng(seed)
    for _ in range(steps):
        found.learn(examples(draws, 64, **more), catalogue(found.config))  # type: ignore[arg-type]
    return found


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def settled(method: Method, rows: dict[str, int]) -> Balance:
    """A balance that has long seen so many rows of each group in a batch."""
    balance = Balance(config(method))
    for _ in range(1000):
        balance.observe(list(rows), list(rows.values()))
    return balance


def test_reweighting_makes_groups_count_alike_and_pareto_weighs_comparisons_alone_by_the_root_of_the_share() -> None:
    rows = {"rare": 10, "usual": 90}
    even, root = settled("reweight", rows), settled("pareto", rows)
    assert even.weigh(["rare", "usual", None], even.targets()).tolist() == pytest.approx([5, 5 / 9, 1], rel=1e-3)
    assert root.weigh(["rare", "usual"], root.targets()).tolist() == [1, 1]
    _, weight_C = root.again(["rare", *["usual"] * 9], root.targets())
    assert weight_C.tolist() == pytest.approx([2.5, *[0.75 / 0.9] * 9], rel=1e-3)


def test_group_dro_raises_whoever_fares_worse_and_maxmin_serves_her_nearly_alone() -> None:
    for method in ("group-dro", "maxmin"):
        balance = settled(method, {"rare": 50, "usual": 50})  # type: ignore[arg-type]
        for _ in range(50):
            balance.heard(["rare", "usual", None], np.array([2.0, 0.5, 9.0]), np.ones(3))
        rare, usual = balance.weigh(["rare", "usual"], balance.targets()).tolist()
        assert rare > 1.5 * usual
        assert rare + usual == pytest.approx(2, rel=1e-3)
        if method == "maxmin":
            assert usual == pytest.approx(0.1, rel=1e-2)


@pytest.mark.parametrize("method", METHODS)
def test_where_only_one_group_has_rows_enough_all_count_as_in_plain_learning(method: Method) -> None:
    balance = settled(method, {"usual": 90, "rare": int(ROWS / 100) - 1})
    found = balance.weigh(["rare", "usual", None], balance.targets())
    assert found.tolist() == [1, 1, 1]


@pytest.mark.parametrize("method", ["reweight", "group-dro", "maxmin", "pareto"])
def test_people_of_no_group_are_learned_bit_for_bit_as_in_plain_learning(method: Method) -> None:
    plain, fair = learner("erm", 2, nowhere=True), learner(method, 2, nowhere=True)
    assert same(plain.weights(), fair.weights())


def test_groups_that_a_batch_lacks_come_again_until_they_have_their_target_share() -> None:
    balance = settled("pareto", {"rare": 10, "usual": 90})
    draws = np.random.default_rng(0)
    before = [one for one in examples(draws, 100, rare=0.5) if one.pairs]
    balance.keep(before, balance.names(before, Known(Labels())))
    names: list[str | None] = ["usual"] * 20 + [None]
    added, weights = balance.again(names, balance.targets())
    assert [one.user[0] for one in added] == ["r"] * 5
    assert weights.tolist() == pytest.approx([0.75] * 20 + [1] + [1] * 5, rel=1e-3)
    assert Balance(config()).again(names, {}) == ([], pytest.approx(np.ones(21)))


@settings(max_examples=20)
@given(st.integers(0, 1000), st.integers(0, 60), st.integers(0, 60), st.integers(0, 8))
def test_what_a_batch_and_its_repetitions_count_for_adds_up_to_the_batch(
    seed: int, usual: int, rare: int, least: int
) -> None:
    balance = settled("pareto", {"rare": 10, "usual": 90})
    before = [one for one in examples(np.random.default_rng(seed), 60) if one.pairs]
    balance.keep(before, balance.names(before, Known(Labels())))
    names: list[str | None] = ["usual"] * usual + ["rare"] * rare
    added, weights = balance.again(names, balance.targets(), least=least)
    assert len(weights) == len(names) + len(added)
    assert float(weights.sum()) == pytest.approx(len(names), rel=1e-4)


def test_a_reservoir_keeps_recent_comparisons_and_forgets_a_person() -> None:
    balance = Balance(config(), kept=16)
    draws = np.random.default_rng(1)
    for _ in range(20):
        some = [one for one in examples(draws, 20) if one.pairs]
        balance.keep(some, balance.names(some, Known(Labels())))
    assert {name: len(kept) for name, kept in balance._reservoir.items()} == {"rare": 16, "usual": 16}
    gone = balance._reservoir["rare"][0].user
    balance.forget(gone)
    assert all(one.user != gone for kept in balance._reservoir.values() for one in kept)
    assert gone.encode() not in balance.people()


def test_a_teacher_reads_what_came_later_but_nothing_about_the_items_compared() -> None:
    acts = tuple(Act(f"i{place}", "like", 100 * place) for place in range(6))
    answers = (Answer("a", "i9", "i1", 250), Answer("b", "i9", "i8", 260))
    known = Evidence(history=acts, answers=answers, updated=500)
    (pair,) = [one for one in examples(np.random.default_rng(0), 1) if one.pairs]
    pair = replace(pair, items=("i1", "i4"), time=200)
    told = privileged(pair, known)
    assert [act.item for act in told.evidence.history] == ["i0", "i2", "i3", "i5"]
    assert [answer.id for answer in told.evidence.answers] == ["b"]
    assert told.time == 500
    assert privileged(pair, None).evidence.history == pair.evidence.history


@cache
def teachers() -> Teachers:
    """Two models that were taught one group each, far enough to differ."""
    tensors = {}
    for name, rare in (("rare", 1.0), ("usual", 0.0)):
        own = learner("erm", 12, seed=3, rare=rare)
        tensors |= named(name, own.weights())
    return Teachers(config(), tensors)


def test_each_group_is_told_its_own_teachers_margins_and_nobody_else_anything() -> None:
    found, own = teachers(), catalogue(config())
    some = [one for one in examples(np.random.default_rng(5), 60, rare=0.5) if one.pairs]
    people = Known(Labels())
    names = Balance(config()).names(some, people)
    names[0] = None
    margin_P = found.margins(some, names, people, own, Population.default())
    assert bool(margin_P[0].isnan())
    assert bool(margin_P[1:].isfinite().all())
    assert float((margin_P[1:] > 0).float().mean()) > 0.9
    swapped = [{"rare": "usual", "usual": "rare", None: None}[name] for name in names]
    other_P = found.margins(some, swapped, people, own, Population.default())
    assert float((other_P[1:] > 0).float().mean()) < 0.3
    again = Teachers(config(), found.tensors())
    assert torch.equal(again.margins(some, names, people, own, Population.default())[1:], margin_P[1:])
    everybody = Teachers(config(), named(EVERYBODY, Learner(config()).weights()))
    assert bool(everybody.margins(some, names, people, own, Population.default()).isfinite().all())


@pytest.mark.parametrize("method", METHODS)
def test_a_fair_learner_taken_up_from_its_state_goes_on_bit_for_bit(method: Method) -> None:
    own = catalogue(config())
    whole = learner(method, 4)
    if method == "pareto":
        whole.teachers = teachers()
    draws = np.random.default_rng(9)
    steps = [examples(draws, 48) for _ in range(3)]
    whole.learn(steps[0], own)
    half = Learner(config(method))
    half.know(Known(Labels()))
    half.load(whole.state())
    for step in steps[1:]:
        whole.learn(step, own)
        half.learn(step, own)
    assert same(whole.state(), half.state())


def test_a_version_goes_on_without_the_reservoir_and_a_plain_learner_passes_over_the_rest() -> None:
    fair = learner("pareto", 6)
    state = fair.state()
    names = {pair.user for kept in fair._balance._reservoir.values() for pair in kept}  # type: ignore[union-attr]
    raw = state[RESERVOIR].numpy().tobytes()
    assert names
    assert all(name.encode() in raw for name in names)
    rest = {name: tensor for name, tensor in state.items() if name != RESERVOIR}
    assert not any(name.encode() in rest["fair"].numpy().tobytes() for name in names)
    later, plain = Learner(config()), Learner(config("erm"))
    later.load(rest)
    plain.load(rest)
    assert same(plain.weights(), fair.weights())


def test_the_rare_are_foretold_better_by_a_balanced_learner_than_by_a_plain_one() -> None:
    own = catalogue(config())
    test = [one for one in examples(np.random.default_rng(77), 300, rare=1.0) if not one.pairs]
    truth_N = np.array([one.labels_NT[0, 0] for one in test])

    def loss(found: Learner) -> float:
        chance_N = np.array([chance_NT[0, 0] for chance_NT in found.predict(test, own)])
        return float(-np.log(np.where(truth_N > 0, chance_N, 1 - chance_N)).mean())

    plain = loss(learner("erm", 12, rare=0.1))
    assert loss(learner("reweight", 12, rare=0.1)) < plain
    assert loss(learner("maxmin", 12, rare=0.1)) < plain


def test_teachers_are_asked_about_one_in_so_many_comparisons() -> None:
    fair = learner("pareto", 6)
    fair.teachers = teachers()
    asked: list[int] = []

    class Watched(Teachers):
        def margins(self, examples: list[Example], *rest: object) -> torch.Tensor:  # type: ignore[override]
            asked.append(len(examples))
            return super().margins(examples, *rest)  # type: ignore[arg-type]

    fair.teachers = Watched(config(), fair.teachers.tensors())
    fair.learn(examples(np.random.default_rng(0), 64), catalogue(config()))
    assert 2 * 64 // AGAIN <= asked[0] <= 32
