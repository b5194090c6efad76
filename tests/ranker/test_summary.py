from functools import cache
from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from ranker.catalogue import Catalogue, Item
from ranker.config import Objective, parse
from ranker.evidence import Act, Evidence, Mean, Past, Words
from ranker.summary import (
    EDIT,
    Batch,
    Candidates,
    Lesson,
    Policy,
    Space,
    Summariser,
    appraise,
    batched,
    candidates,
    draw,
    full,
    improve,
    masked,
    phrases_of,
    profiled,
    struck_key,
    told,
    words_factor,
)
from ranker.taste import Factor
from ranker.vocabulary import KINDS, Phrase, Vocabulary

GENRES = ("Comedy", "Drama", "Horror", "Jazz", "War")
CONFIG = parse(
    {"objectives": [{"name": "like", "event": "rate", "threshold": 4.0}], "fields": {"item": {"genre": "categories"}}}
)
K = 3
SILENT = Words()


@cache
def world(seed: int = 0, items: int = 60) -> tuple[Vocabulary, np.ndarray, Space]:
    """Items of one or two genres; base rewards follow the genres, with noise."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(len(GENRES), K))
    catalogue, phi = Catalogue(CONFIG), []
    for place in range(items):
        mine = rng.choice(len(GENRES), rng.integers(1, 3), replace=False)
        catalogue.put(Item(f"i{place}", {"genre": [GENRES[one] for one in mine]}))
        phi.append(centres[mine].mean(0) + 0.2 * rng.normal(size=K))
    vocabulary = Vocabulary(CONFIG, catalogue)
    vocabulary.update()
    phi_NK = np.array(phi)
    root = rng.normal(size=(K, K))
    precision = (root @ root.T + np.eye(K)).astype(np.float32)
    prior = Factor(precision, (precision @ (0.3 * rng.normal(size=K))).astype(np.float32))
    return vocabulary, phi_NK, Space.of(vocabulary.tags.directions(phi_NK), prior)


def person(seed: int, acts: int = 20, words: Words = SILENT) -> Evidence:
    rng = np.random.default_rng(seed)
    history = tuple(
        Act(f"i{item}", "rate", 1000 * time, float(rng.integers(1, 6)))
        for time, item in enumerate(rng.choice(60, acts, replace=False))
    )
    total = sum(act.value or 0 for act in history)
    return Evidence(history=history, words=words, means={"rate": Mean(acts, total)})


def summariser(seed: int = 0) -> Summariser:
    return Summariser(Policy(torch.Generator().manual_seed(seed)).state_dict())


def before(space: Space, seed: int, strength: float) -> Factor:
    """The prior and a history of this strength."""
    rng = np.random.default_rng(seed)
    seen = rng.normal(size=(8, K)) * np.sqrt(strength)
    more = seen.T @ seen
    return Factor(
        (space.precision_KK + more).astype(np.float32),
        (space.information_K + more @ rng.normal(size=K)).astype(np.float32),
    )


def mean_of(*factors: Factor) -> np.ndarray:
    precision = sum(full(one.precision) for one in factors)
    return np.linalg.solve(precision, sum(one.information.astype(np.float64) for one in factors))


def test_liked_is_what_the_objectives_value_and_what_falls_short_of_them_is_not():
    evidence = Evidence(
        history=(Act("a", "rate", 1, 5.0), Act("b", "rate", 2, 2.0), Act("c", "view", 3), Act("d", "hide", 4)),
        means={"rate": Mean(2, 7.0)},
    )
    objectives = [
        Objective(name="like", event="rate", threshold=4.0),
        Objective(name="hide", event="hide", weight=-1.0),
    ]
    assert appraise(evidence, objectives)[1].tolist() == [1.0, -1.0, 0.0, -1.0]


def test_the_inputs_of_a_phrase_are_those_of_a_count_by_hand():
    vocabulary, _, space = world()
    columns = vocabulary.tags.columns
    rows = np.flatnonzero(vocabulary.tags.matrix_NV[:, [columns["genre=Jazz"]]].toarray())[:3]
    others = np.flatnonzero(vocabulary.tags.matrix_NV[:, [columns["genre=Jazz"]]].toarray() == 0)[:3]
    found = candidates(
        vocabulary.tags,
        np.concatenate([rows, others, [-1]]),
        np.array([1.0, 1, 1, -1, -1, -1, 0]),
        np.zeros(7, np.int64),
        space=space,
    )
    jazz = np.flatnonzero((found.columns_C == columns["genre=Jazz"]) & (found.signs_C == 0))
    assert len(jazz) == 1
    inputs = found.inputs_CF[jazz[0]]
    rate = 4 / 8
    assert inputs[0] == pytest.approx(np.log((3 + 2 * rate) / 5 / rate))
    assert inputs[1] == pytest.approx((3 - 3 * rate) / np.sqrt(3 * rate * (1 - rate) + 1) / 2)
    assert inputs[6] == pytest.approx(np.log1p(3) / 3)
    assert inputs[8] == 0
    assert inputs[10:].tolist() == [1.0] + [0.0] * (len(KINDS) - 1)


def test_a_summary_says_what_was_written_first_and_no_tag_twice():
    vocabulary, _, space = world()
    words = Words(likes=("genre=War",), avoids=("genre=Jazz",), struck=("genre=Drama", "avoids genre=Horror"))
    found = phrases_of(person(1, words=words), vocabulary, summariser(), space, objectives=CONFIG.objectives, most=5)
    assert found[:2] == [Phrase("likes", "genre", "War"), Phrase("avoids", "genre", "Jazz")]
    assert len({phrase.key for phrase in found}) == len(found)
    assert "genre=Drama" not in {phrase.key for phrase in found}
    assert Phrase("avoids", "genre", "Horror") not in found


def test_nobody_who_did_nothing_is_described():
    vocabulary, _, space = world()
    assert phrases_of(Evidence(), vocabulary, summariser(), space) == []
    empty = Vocabulary(CONFIG, Catalogue(CONFIG))
    assert phrases_of(person(0), empty, summariser(), Space.of(np.zeros((0, K)), space.prior)) == []


@given(st.integers(0, 1000))
@settings(max_examples=25)
def test_the_same_evidence_gives_the_same_phrases_whatever_the_order_of_equal_times(seed):
    vocabulary, _, space = world()
    evidence = person(seed)
    rng = np.random.default_rng(seed)
    still = tuple(Act(act.item, act.type, 5, act.value) for act in evidence.history)
    turned = tuple(still[place] for place in rng.permutation(len(still)))
    first, second = (
        phrases_of(
            Evidence(history=history, means=evidence.means),
            vocabulary,
            summariser(),
            space,
            objectives=CONFIG.objectives,
        )
        for history in (still, turned)
    )
    assert first == second


@given(st.integers(0, 1000), st.lists(st.sampled_from(GENRES), min_size=1, max_size=3), st.booleans())
def test_striking_never_leaves_acts_behind_it(seed, struck, signed):
    vocabulary, _, _ = world()
    keys = tuple(f"likes genre={genre}" if signed else f"genre={genre}" for genre in struck)
    evidence = person(seed, words=Words(struck=keys))
    evidence = replace(evidence, past=Past(tuple(reversed(evidence.history)), floor=7))
    left = masked(evidence, vocabulary)
    assert left.past == Past(tuple(reversed(left.history)), floor=7)
    kinds = {
        act.item: vocabulary.catalogue.items[vocabulary.catalogue.rows[act.item]].fields["genre"]
        for act in evidence.history
    }
    assert all(set(struck).isdisjoint(kinds[act.item]) for act in left.history)
    gone = set(evidence.history) - set(left.history)
    assert all(not set(struck).isdisjoint(kinds[act.item]) for act in gone)
    assert left.words == evidence.words


def test_nothing_struck_leaves_the_evidence_as_it_is():
    vocabulary, _, _ = world()
    evidence = person(3)
    assert masked(evidence, vocabulary) is evidence


def test_what_a_struck_phrase_was_said_of_is_read_off_its_key():
    assert struck_key("likes genre=War") == ("likes", "genre=War")
    assert struck_key("genre=likes War") == (None, "genre=likes War")


@given(
    st.integers(0, 1000),
    st.sampled_from(GENRES),
    st.booleans(),
    st.floats(0, 1000),
    st.lists(st.tuples(st.sampled_from(GENRES), st.booleans()), max_size=3, unique_by=lambda one: one[0]),
)
def test_a_written_phrase_moves_its_items_the_stated_way_however_much_is_known(seed, genre, liked, strength, others):
    vocabulary, phi_NK, space = world(seed % 7)
    others = [one for one in others if one[0] != genre]
    tags, known, says = vocabulary.tags, before(space, seed, strength), summariser()

    def level(said: list[tuple[str, bool]]) -> float:
        words = Words(
            tuple(f"genre={one}" for one, good in said if good), tuple(f"genre={one}" for one, good in said if not good)
        )
        z_K = mean_of(known, words_factor(words, tags, says, space, known))
        return float(space.unit_VK[tags.columns[f"genre={genre}"]] @ z_K)

    moved = (level([*others, (genre, liked)]) - level(others)) * (1 if liked else -1)
    assert moved > 0
    if not others:
        assert moved >= EDIT * 0.99
    inside = tags.matrix_NV[:, [tags.columns[f"genre={genre}"]]].toarray()[:, 0] > 0
    utility = phi_NK @ mean_of(
        known, words_factor(Words((f"genre={genre}",)), tags, says, space, known)
    ) - phi_NK @ mean_of(known)
    assert utility[inside].mean() > utility.mean()


@given(st.integers(0, 1000), st.sampled_from(GENRES), st.floats(0, 100))
def test_a_struck_phrase_takes_the_taste_back_to_the_population_and_never_past_a_little_beyond(seed, genre, strength):
    vocabulary, _, space = world(seed % 7)
    tags, known = vocabulary.tags, before(space, seed, strength)
    column = tags.columns[f"genre={genre}"]
    unit_K, neutral = space.unit_VK[column], space.neutral_V[column]
    stood = float(unit_K @ mean_of(known)) - neutral
    plain, likes = (
        float(unit_K @ mean_of(known, words_factor(Words(struck=(key,)), tags, summariser(), space, known))) - neutral
        for key in (f"genre={genre}", f"likes genre={genre}")
    )
    assert plain == pytest.approx(0, abs=2e-3 * (1 + abs(stood)))
    assert likes <= stood + 1e-3
    assert likes == pytest.approx(min(-0.5, stood), abs=2e-3 * (1 + abs(stood)))


@given(
    st.integers(0, 1000),
    st.lists(st.tuples(st.sampled_from(GENRES), st.sampled_from(("likes", "avoids", "struck"))), max_size=5),
)
def test_variance_never_grows_with_words_and_their_order_does_not_matter(seed, said):
    vocabulary, _, space = world(seed % 7)
    known = before(space, seed, 1.0)
    said = list(dict(said).items())

    def factor(ordered: list[tuple[str, str]]) -> Factor:
        named = {
            kind: tuple(f"genre={genre}" for genre, one in ordered if one == kind)
            for kind in ("likes", "avoids", "struck")
        }
        return words_factor(Words(**named), vocabulary.tags, summariser(), space, known)

    found = factor(said)
    assert np.linalg.eigvalsh(found.precision.astype(np.float64)).min() > -1e-4
    for turned in list(permutations(said))[:6]:
        other = factor(list(turned))
        np.testing.assert_allclose(other.precision, found.precision, atol=1e-5)
        np.testing.assert_allclose(other.information, found.information, atol=1e-3, rtol=1e-4)


def test_words_that_name_no_tag_say_nothing():
    vocabulary, _, space = world()
    for words in (Words(), Words(likes=("genre=Opera",), avoids=("nonsense",), struck=("",))):
        factor = words_factor(words, vocabulary.tags, summariser(), space, space.prior)
        assert not factor.precision.any()
        assert not factor.information.any()


def test_the_numpy_form_scores_as_the_policy_does():
    policy = Policy(torch.Generator().manual_seed(1))
    with torch.no_grad():
        policy.out.normal_(generator=torch.Generator().manual_seed(2))
    inputs = np.random.default_rng(0).normal(size=(9, 16)).astype(np.float32)
    expected = policy(torch.from_numpy(inputs)).detach().numpy()
    prefixed = {f"summary.{name}": tensor for name, tensor in policy.state_dict().items()}
    np.testing.assert_allclose(Summariser(prefixed, "summary.").scores(inputs), expected, rtol=1e-5, atol=1e-5)


def batch_of(columns: list[int], signs: list[int]) -> Batch:
    could = Candidates(np.array(columns), np.array(signs), np.zeros((len(columns), 16), np.float32))
    return batched([Lesson(could, np.ones((1, K)), np.zeros(1))])


def test_draws_follow_plackett_luce_and_never_say_both_of_a_tag():
    batch = batch_of([0, 0, 1], [0, 1, 0])
    scores = torch.tensor([[1.0, 0.0, 0.5]])
    chosen, chances, real = draw(scores, batch, 3, 20_000, torch.Generator().manual_seed(0))
    assert real.tolist() == [[[True, True, False]] * 20_000]
    first = torch.bincount(chosen[0, :, 0], minlength=3) / 20_000
    np.testing.assert_allclose(first, torch.softmax(scores[0], 0), atol=0.015)
    np.testing.assert_allclose(chances[0, :, 0].exp(), torch.softmax(scores[0], 0)[chosen[0, :, 0]], rtol=1e-5)
    then = chosen[0][chosen[0, :, 0] == 2][:, 1]
    assert set(then.tolist()) == {0, 1}
    assert (chosen[0][chosen[0, :, 0] < 2][:, 1] == 2).all()


def test_without_a_generator_the_best_are_taken():
    chosen, _, _ = draw(torch.tensor([[0.1, 0.3, 0.2]]), batch_of([0, 1, 2], [0, 0, 1]), 2, 1, None)
    assert chosen.tolist() == [[[1, 2]]]


def test_what_one_phrase_says_is_the_posterior_of_one_observation():
    vocabulary, _, space = world()
    policy = Policy(torch.Generator().manual_seed(0))
    batch = batch_of([1], [1])
    chosen = torch.zeros(1, 1, 1, dtype=torch.int64)
    z_K = told(policy, batch, chosen, torch.ones(1, 1, 1), tags=vocabulary.tags, space=space)[0, 0].detach().numpy()
    level = np.log(2)  # softplus(0); a trust of exp(0)
    moved = space.unit_VK[1] @ (z_K - space.mean_K)
    assert moved == pytest.approx(-level / 2, rel=1e-4)


def lessons(seed: int, people: int = 24) -> tuple[list[Lesson], Vocabulary, Space]:
    """People whose tastes are their own, with histories that show them."""
    vocabulary, phi_NK, space = world()
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(people):
        z_K = 2 * rng.normal(size=K)
        rows = rng.choice(len(phi_NK), 30, replace=False)
        said = np.where(phi_NK[rows] @ z_K > np.median(phi_NK[rows] @ z_K), 1.0, -1.0)
        could = candidates(vocabulary.tags, rows, said, np.arange(30), space=space)
        one, other = rng.integers(0, len(phi_NK), (2, 40))
        apart = phi_NK[one] - phi_NK[other]
        found.append(Lesson(could, apart * np.sign(apart @ z_K)[:, None], np.zeros(40)))
    return found, vocabulary, space


def trained(steps: int, seed: int) -> tuple[Policy, list[dict[str, float]]]:
    told_, vocabulary, space = lessons(0)
    policy = Policy(torch.Generator().manual_seed(seed))
    speaking, meaning = torch.optim.Adam(policy.speaking(), 0.05), torch.optim.Adam(policy.meaning(), 0.1)
    generator = torch.Generator().manual_seed(seed)
    said = [
        improve(
            policy,
            told_,
            vocabulary.tags,
            space,
            optimiser=speaking if step % 2 else meaning,
            generator=generator,
            turn="policy" if step % 2 else "meaning",
            phrases=2,
        )
        for step in range(steps)
    ]
    return policy, said


def test_training_raises_the_reward_above_saying_nothing_and_above_its_start():
    _, said = trained(60, 0)
    assert said[-2]["reward"] > said[0]["reward"] + 0.02
    assert said[0]["reward"] > said[0]["baseline"]
    assert said[1]["spread"] > 0


def test_training_is_determined_by_its_generator():
    one, other = trained(4, 3)[0], trained(4, 3)[0]
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))
    assert not torch.equal(trained(4, 4)[0].direct, one.direct)


def test_a_turn_leaves_the_other_parameters_alone():
    policy, _ = trained(1, 0)
    start = Policy(torch.Generator().manual_seed(0))
    assert all(torch.equal(a, b) for a, b in zip(policy.speaking(), start.speaking(), strict=True))
    assert not torch.equal(policy.level, start.level)


def test_lessons_without_candidates_or_comparisons_teach_nothing():
    _, vocabulary, space = lessons(0, 1)
    policy = Policy(torch.Generator().manual_seed(0))
    nothing = Lesson(
        Candidates(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros((0, 16), np.float32)),
        np.ones((1, K)),
        np.zeros(1),
    )
    assert (
        improve(
            policy,
            [nothing],
            vocabulary.tags,
            space,
            optimiser=torch.optim.Adam(policy.speaking()),
            generator=torch.Generator(),
            turn="policy",
        )
        == {}
    )


def test_a_profile_drops_what_is_avoided_and_holds_what_is_liked():
    words = Words(likes=("genre=Jazz",), avoids=("genre=War",))
    found = profiled(np.array([0.5, 0.1, 0.4]), ["Drama", "Jazz", "War"], words, "genre")
    np.testing.assert_allclose(found, [0.8, 0.2, 0.0])


def test_a_profile_of_a_newcomer_is_what_she_wrote():
    found = profiled(np.zeros(2), ["Drama", "Jazz"], Words(likes=("genre=Jazz",)), "genre")
    np.testing.assert_allclose(found, [0, 1])
    assert not profiled(np.zeros(2), ["Drama", "Jazz"], Words(), "genre").any()


@given(
    st.lists(st.floats(0, 1), min_size=5, max_size=5),
    st.lists(st.sampled_from(GENRES), max_size=5),
    st.lists(st.sampled_from(GENRES), max_size=5),
)
def test_a_profile_still_sums_to_one_and_is_not_changed_in_place(shares, likes, avoids):
    target = np.array(shares)
    target = target / target.sum() if target.sum() > 0 else target
    kept = target.copy()
    words = Words(tuple(f"genre={one}" for one in likes), tuple(f"genre={one}" for one in avoids))
    found = profiled(target, GENRES, words, "genre")
    np.testing.assert_array_equal(target, kept)
    assert found.min() >= 0
    assert found.sum() == pytest.approx(1) or not found.any()
    assert all(found[GENRES.index(one)] == 0 for one in avoids)
    if not words.likes and not words.avoids:
        np.testing.assert_allclose(found, target)
