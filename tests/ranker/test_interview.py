"""ranker/interview.py: what is asked, in which order and words, what comes again, and when it is enough."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ranker import config as declared
from ranker.catalogue import Catalogue, Item
from ranker.config import Config
from ranker.evidence import EMPTY, Answer, Evidence
from ranker.inference import Inference
from ranker.interview import ANSWERS, POOL, REPEAT, Interview, Turn, pool_of, uncertainty
from ranker.model import Model
from ranker.taste import Factor, Taste

NOW = 1_700_000_000_000
GENRES = ("comedy", "drama", "horror")


def config() -> Config:
    return declared.parse(
        {
            "scale": "tiny",
            "interests": "genres",
            "fields": {"item": {"genres": "categories"}},
            "objectives": [{"name": "click", "event": "click"}, {"name": "like", "event": "like"}],
        }
    )


def catalogue_of(items: int) -> Catalogue:
    catalogue = Catalogue(config())
    for n in range(items):
        catalogue.put(Item(f"i{n}", {"genres": [GENRES[n % 3]]}, NOW - n))
    return catalogue


def interview_of(items: int = 12, seed: int = 0, known: str | None = None) -> Interview:
    catalogue = catalogue_of(items)
    weights = Model(config(), torch.Generator().manual_seed(seed)).state_dict()
    with torch.no_grad():
        weights["table_VD"].normal_(generator=torch.Generator().manual_seed(seed))
    inference = Inference(config(), weights)
    if known is not None:
        keys = inference.encoder.item(Item(known)).rows[:2]
        weights["counters.counts_VF"][torch.from_numpy(keys)] = 7.0
        inference = Inference(config(), weights)
    inference.attach(catalogue)
    return Interview(inference, catalogue)


def answer_to(turn: Turn, outcome: str = "preferred", first: bool = True) -> Answer:
    one, other = turn.items if first else turn.items[::-1]
    condition = {"shown_first": turn.items[0], "wording": turn.wording}
    return Answer(f"a{turn.number}", one, other, NOW + turn.number, outcome, None, condition)


def asked(interview: Interview, count: int, outcome: str = "preferred") -> tuple[list[Turn], Evidence]:
    turns, evidence = [], EMPTY
    for _ in range(count):
        turn, _ = interview.next("ann", evidence, NOW)
        assert turn is not None
        turns.append(turn)
        evidence = Evidence(answers=(*evidence.answers, answer_to(turn, outcome)))
    return turns, evidence


def test_the_pool_holds_the_best_known_of_each_interest_in_turn() -> None:
    known = np.array([0, 0, 0, 9, 1, 0, 8, 0, 3, 7, 0, 0.0])  # comedies i0, i3, ... are best known
    pool = pool_of(catalogue_of(12), known, size=6)
    assert pool.tolist() == [3, 8, 4, 6, 1, 2]


def test_items_that_nobody_could_tell_apart_are_asked_about_only_where_there_is_nothing_else() -> None:
    catalogue = Catalogue(config())
    for n in range(6):
        catalogue.put(Item(f"i{n}", {} if n < 3 else {"title": f"Number {n}"}, NOW))
    assert sorted(pool_of(catalogue, np.zeros(6)).tolist()) == [3, 4, 5]
    bare = Catalogue(config())
    for n in range(4):
        bare.put(Item(f"i{n}", {}, NOW))
    assert pool_of(bare, np.zeros(4)).tolist() == [0, 1, 2, 3]


def test_what_a_version_was_shown_most_is_known_best() -> None:
    assert interview_of(200, known="i130").pool_P[0] == 130
    assert len(interview_of(200).pool_P) == POOL


def test_the_pool_follows_the_catalogue_but_not_every_item() -> None:
    interview = interview_of(200)
    before = interview.pool_P
    for count, moved in ((201, False), (260, True)):
        for n in range(len(interview._catalogue), count):
            interview._catalogue.put(Item(f"i{n}", {"genres": ["western"]}, NOW))
        interview._inference.attach(interview._catalogue)
        interview.refresh()
        assert (interview.pool_P is not before) == moved
    assert 200 in interview.pool_P


def test_the_same_person_is_asked_the_same_until_she_answers() -> None:
    interview = interview_of()
    assert interview.next("ann", EMPTY, NOW) == interview.next("ann", EMPTY, NOW)
    orders = {interview.next(f"u{n}", EMPTY, NOW)[0].items for n in range(20)}  # type: ignore[union-attr]
    assert len(orders) == 2  # the same best pair for all newcomers, in either order
    assert {interview.next(f"u{n}", EMPTY, NOW)[0].wording for n in range(40)} == {"rather", "skip"}  # type: ignore[union-attr]


@pytest.mark.parametrize("outcome", ["preferred", "both", "neither", "skip"])
def test_no_pair_comes_twice_except_on_purpose(outcome: str) -> None:
    turns, _ = asked(interview_of(), 14, outcome)
    fresh = [frozenset(turn.items) for turn in turns if not turn.again]
    assert len(set(fresh)) == len(fresh)
    assert [turn.number for turn in turns if turn.again] == ([] if outcome == "skip" else [5, 10])


def test_a_pair_comes_again_the_other_way_round_and_in_other_words() -> None:
    turns, _ = asked(interview_of(), 2 * REPEAT)
    for place, earlier in ((REPEAT - 1, 0), (2 * REPEAT - 1, 1)):
        assert turns[place].items == turns[earlier].items[::-1]
        assert turns[place].wording != turns[earlier].wording


def test_an_answer_about_items_that_are_gone_is_not_asked_again() -> None:
    interview = interview_of()
    strange = tuple(Answer(f"a{n}", f"x{n}", f"y{n}", NOW) for n in range(REPEAT - 1))
    turn, _ = interview.next("ann", Evidence(answers=strange), NOW)
    assert turn is not None
    assert not turn.again


def test_when_no_pair_is_left_it_is_enough() -> None:
    interview = interview_of(2)
    turn, progress = interview.next("ann", EMPTY, NOW)
    assert turn is not None
    assert set(turn.items) == {"i0", "i1"}
    turn, progress = interview.next("ann", Evidence(answers=(answer_to(turn),)), NOW)
    assert (turn, progress.enough, progress.reason) == (None, True, "no pair is left to ask")
    assert interview_of(0).next("ann", EMPTY, NOW)[0] is None
    assert interview_of(1).next("ann", EMPTY, NOW)[0] is None


def test_enough_is_known_after_answers_that_amount_to_ten() -> None:
    interview = interview_of(30)
    _, evidence = asked(interview, 20)
    _, progress = interview.next("ann", evidence, NOW)
    assert progress.answers == 20
    assert progress.enough == (progress.effective >= ANSWERS or "less than" in progress.reason)
    _, start = interview.next("ann", EMPTY, NOW)
    assert (start.answers, start.effective, start.enough, start.uncertainty) == (0, 0.0, False, 1.0)
    assert progress.uncertainty < 1


def test_enough_is_known_where_no_answer_would_tell_anything() -> None:
    interview = interview_of(12)
    interview._inference.base = lambda rows: (  # type: ignore[method-assign]
        np.full((len(rows), 8), 1e-3, np.float32) * np.arange(len(rows), dtype=np.float32)[:, None],
        np.zeros(len(rows), np.float32),
    )
    _, progress = interview.next("ann", EMPTY, NOW)
    assert progress.enough
    assert "less than" in progress.reason


@settings(max_examples=15)
@given(st.lists(st.sampled_from(["preferred", "both", "neither", "skip"]), max_size=12), st.integers(0, 3))
def test_whatever_is_answered_the_next_question_is_a_pair_of_the_pool(outcomes: list[str], seed: int) -> None:
    interview = INTERVIEWS.setdefault(seed, interview_of(12, seed))
    evidence = EMPTY
    for outcome in outcomes:
        turn, progress = interview.next("bob", evidence, NOW)
        assert turn is not None
        assert turn.gain >= 0
        assert len(set(turn.items)) == 2
        # a later answer may make the earlier ones less believed, so it may rise again, but never above the prior
        assert progress.uncertainty <= 1 + 1e-6
        evidence = Evidence(answers=(*evidence.answers, answer_to(turn, outcome)))


INTERVIEWS: dict[int, Interview] = {}


@given(st.lists(st.floats(0.1, 10), min_size=1, max_size=6))
def test_uncertainty_is_a_ratio_of_standard_deviations(precisions: list[float]) -> None:
    prior = np.array(precisions, np.float32)
    taste = Taste(mean_K=0 * prior, precision_K=4 * prior)
    assert uncertainty(taste, Factor(prior, 0 * prior)) == pytest.approx(0.5, rel=1e-5)
    assert uncertainty(dataclasses.replace(taste, precision_K=np.diag(prior)), Factor(prior, prior)) == pytest.approx(1)
