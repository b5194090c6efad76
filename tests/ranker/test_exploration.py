import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ranker.config import Exploration
from ranker.exploration import Explorer, explore, odds_of
from ranker.taste import Taste


def exact(places: int, swap: float, share: float, q_WM: np.ndarray) -> dict[tuple[int, int], float]:
    """P(candidate at place) by writing every outcome down: the plain way, one list at a time."""
    found: Counter[tuple[int, int]] = Counter()
    window, size = q_WM.shape
    outcomes = [(1 - share, list(range(places)))]
    for slot in range(window):
        for drawn in range(slot, size):
            order = [n for n in range(places) if n != drawn]
            order.insert(slot, drawn)
            outcomes.append((share / window * q_WM[slot, drawn], order[:places]))
    for chance, order in outcomes:
        pairs = range(places - 1) if places > 1 else ()
        swapped = [(swap / (places - 1), n) for n in pairs] + [(1 - swap if places > 1 else 1.0, None)]
        for p, upper in swapped:
            shown = order.copy()
            if upper is not None:
                shown[upper], shown[upper + 1] = shown[upper + 1], shown[upper]
            for place, n in enumerate(shown):
                found[n, place] += chance * p
    return dict(found)


def q_of(utility_DM: np.ndarray, window: int, uniform: float) -> np.ndarray:
    draws, size = utility_DM.shape
    q_WM = np.zeros((window, size))
    for slot in range(window):
        q_WM[slot, slot:] = uniform / (size - slot)
        for utility_M in utility_DM:
            q_WM[slot, slot + int(utility_M[slot:].argmax())] += (1 - uniform) / draws
    return q_WM


def test_two_items_and_three_items_are_swapped_with_exact_propensities():
    _, chance, swapped, _ = explore(np.array([4, 5]), 0.2, seed=0)
    assert chance.tolist() == pytest.approx([0.8, 0.8] if swapped is None else [0.2, 0.2])
    order, chance, swapped, _ = explore(np.array([4, 5, 6]), 0.2, seed=2)
    assert (swapped, order.tolist()) == (None, [4, 5, 6])
    assert chance.tolist() == pytest.approx([0.9, 0.8, 0.9])


def test_an_item_from_beyond_pushes_the_rest_down_and_the_last_one_out():
    odds = odds_of(np.array([[0.0, 0.0, 0.0, 9.0]]), 3, 0.0)
    seen = {}
    for seed in range(40):
        drawn = explore(np.array([4, 5, 6]), 0.0, seed, share=1.0, odds=odds, beyond=np.array([8]))
        seen[drawn.slot] = (drawn.order_S.tolist(), drawn.propensity_S.round(6).tolist())
    third, pushed = round(1 / 3, 6), round(2 / 3, 6)
    assert seen == {
        0: ([8, 4, 5], [third, third, pushed]),
        1: ([4, 8, 5], [pushed, third, pushed]),
        2: ([4, 5, 8], [pushed, third, third]),
    }


def test_an_item_drawn_from_lower_down_leaves_what_stands_below_its_old_place():
    odds = odds_of(np.array([[0.0, 0.0, 9.0, 0.0]]), 1, 0.0)
    drawn = explore(np.array([4, 5, 6, 7]), 0.0, 1, share=1.0, odds=odds)
    assert drawn.order_S.tolist() == [6, 4, 5, 7]
    assert drawn.propensity_S.tolist() == [1, 1, 1, 1]


@given(st.data(), st.integers(0, 10**6))
@settings(max_examples=60)
def test_the_propensity_is_the_sum_over_everything_that_could_have_been_drawn(data, seed):
    places, more, window, draws = (data.draw(st.integers(low, high)) for low, high in ((1, 5), (0, 3), (1, 5), (1, 4)))
    swap, share, uniform = (data.draw(st.floats(0, 1)) for _ in range(3))
    window = min(window, places)
    utility_DM = np.random.default_rng(seed).integers(0, 4, (draws, places + more)).astype(float)
    wanted = exact(places, swap, share, q_of(utility_DM, window, uniform))
    odds, names = odds_of(utility_DM, window, uniform), np.arange(places + more) * 10
    for again in range(seed, seed + 12):
        drawn = explore(names[:places], swap, again, share=share, odds=odds, beyond=names[places:])
        assert len(set(drawn.order_S.tolist())) == places
        for place, (item, chance) in enumerate(zip(drawn.order_S // 10, drawn.propensity_S, strict=True)):
            assert chance == pytest.approx(wanted[int(item), place], abs=1e-9)
            assert chance > 0


def test_the_frequencies_of_many_seeds_are_the_propensities():
    utility_DM = np.random.default_rng(3).normal(size=(8, 7))
    odds, names, draws = odds_of(utility_DM, 4, 0.3), np.arange(7), 20_000
    seen: Counter[tuple[int, int]] = Counter()
    logged: dict[tuple[int, int], float] = {}
    for seed in range(draws):
        drawn = explore(names[:5], 0.4, seed, share=0.6, odds=odds, beyond=names[5:])
        for place, (item, p) in enumerate(zip(drawn.order_S.tolist(), drawn.propensity_S.tolist(), strict=True)):
            seen[place, item] += 1
            assert logged.setdefault((place, item), p) == pytest.approx(p)
    for pair, count in seen.items():
        p = logged[pair]
        assert abs(count / draws - p) <= 4.5 * math.sqrt(p * (1 - p) / draws) + 1e-9
    for place in range(5):
        assert sum(p for (at, _), p in logged.items() if at == place) == pytest.approx(1, abs=0.02)


def made(places: int = 6, size: int = 30, **config: float) -> tuple[Explorer, dict[str, object]]:
    rng = np.random.default_rng(5)
    phi_NK = rng.normal(size=(size, 4)).astype(np.float32)
    mean_K = rng.normal(size=4).astype(np.float32)
    taste = Taste(mean_K=mean_K, precision_K=np.full(4, 4.0, np.float32))
    reward_N = phi_NK @ mean_K
    named = {"taste": taste, "phi_NK": phi_NK, "reward_N": reward_N, "utility_N": 0.1 * reward_N, "window": places}
    return Explorer(Exploration(**config), 4), {"user": "u", **named}


def test_a_certain_taste_draws_the_best_that_does_not_stand_above():
    explorer, known = made(slot=1.0, uniform=0.0)
    order = np.argsort(-known["utility_N"])[:6]
    sure = {**known, "taste": Taste(mean_K=known["taste"].mean_K, precision_K=np.full(4, 1e12, np.float32))}
    for seed in range(30):
        drawn = explorer.explore(order, 0.0, seed, **sure)
        assert drawn.order_S.tolist() == order.tolist()
        assert drawn.propensity_S == pytest.approx(np.ones(6))


def test_an_uncertain_taste_lets_others_in_and_only_those_that_are_allowed():
    explorer, known = made(slot=1.0, uniform=0.5)
    order, allowed = np.argsort(-known["utility_N"])[:6], np.zeros(30, bool)
    entered = set()
    for seed in range(300):
        entered |= set(explorer.explore(order, 0.3, seed, **known).order_S.tolist())
    assert len(entered) > 15
    allowed[[1, 2]] = True
    entered = set()
    for seed in range(300):
        entered |= set(explorer.explore(order, 0.3, seed, **known, allowed_N=allowed).order_S.tolist())
    assert entered == {*order.tolist(), 1, 2}
    assert allowed.sum() == 2


def test_what_could_not_be_scored_never_enters():
    explorer, known = made(slot=1.0, uniform=1.0)
    order = np.argsort(-known["utility_N"])[:6]
    utility_N = known["utility_N"].copy()
    bad = next(n for n in range(30) if n not in order)
    utility_N[bad] = np.nan
    shown = [explorer.explore(order, 0, seed, **{**known, "utility_N": utility_N}).order_S for seed in range(400)]
    assert bad not in np.concatenate(shown)


def test_a_full_precision_and_its_diagonal_draw_alike():
    explorer, known = made(slot=1.0)
    order = np.argsort(-known["utility_N"])[:6]
    full = Taste(mean_K=known["taste"].mean_K, precision_K=np.diag(known["taste"].precision_K))
    for seed in range(20):
        one, other = (explorer.explore(order, 0.2, seed, **{**known, "taste": t}) for t in (known["taste"], full))
        assert one.order_S.tolist() == other.order_S.tolist()
        assert one.propensity_S == pytest.approx(other.propensity_S)


def test_posterior_draws_have_the_posterior_s_covariance():
    explorer, known = made(draws=256)
    precision_KK = np.array([[3, 1, 0, 0], [1, 2, 0.5, 0], [0, 0.5, 1, 0], [0, 0, 0, 4]], np.float32)
    taste = Taste(mean_K=known["taste"].mean_K, precision_K=precision_KK)
    moved = np.concatenate([explorer._moved(f"u{n}", taste).T for n in range(300)])
    assert np.abs(np.cov(moved.T) - np.linalg.inv(precision_KK)).max() < 0.06
    assert np.abs(moved.mean(0)).max() < 1e-5


def test_without_a_share_nothing_is_drawn_and_swaps_go_on():
    explorer, known = made(slot=0.0)
    drawn = explorer.explore(np.array([3, 4]), 1.0, 7, **known)
    assert (drawn.order_S.tolist(), drawn.swapped, drawn.slot) == ([4, 3], 0, None)
    assert explorer.explore(np.array([], np.int64), 1.0, 7, **known).propensity_S.tolist() == []
    assert made(slot=1.0)[0].explore(np.array([], np.int64), 1.0, 7, **known).order_S.tolist() == []
