import numpy as np
import pytest

from experiments import gate
from experiments.gate import Pool, Window, candidates, chain, course, power
from ranker.gate import Verdict
from ranker.metrics import ndcg


@pytest.fixture(scope="module")
def pool() -> Pool:
    return Pool(0, 600)


def test_losses_are_what_their_names_say(pool: Pool) -> None:
    assert pool.harm("equal", "ndcg@10") == pytest.approx(0, abs=0.004)
    assert pool.harm("equal", "log_loss") == pytest.approx(0)
    for share in gate.LOSSES:
        for own in (None, 3):
            assert pool.harm(pool.losing(share, own=own), "ndcg@10") == pytest.approx(share, abs=0.004)
            assert pool.harm(pool.losing(share, own=own), "log_loss") == pytest.approx(0)
    assert pool.harm("better", "ndcg@10") < 0
    assert pool.harm("better", "log_loss") < 0
    assert pool.harm("poisoned", "ndcg@10") > 0.3
    ordered = [ndcg(a, b) for a, b in zip(pool._label_SN, pool._chance_SN, strict=True)]
    np.testing.assert_allclose(pool._order(0.0, pool._slip_SN), ordered)


def test_a_poisoned_group_is_refused_and_a_better_candidate_passes(pool: Pool) -> None:
    generator = np.random.default_rng(0)
    assert all(course(pool, "poisoned", "equal", 400, generator, every=100).refused for _ in range(5))
    assert sum(course(pool, "better", "better", 600, generator, every=100).passed for _ in range(5)) >= 4
    assert not any(course(pool, "equal", "equal", 400, generator, every=100).refused for _ in range(5))


def test_a_promotion_is_false_where_the_truth_lies_beyond_what_its_verdict_states(pool: Pool) -> None:
    window = Window(pool, pool.losing(0.1), "equal", 10, np.random.default_rng(0))
    assert window.truth("ndcg@10:overall") == pytest.approx(0.02, abs=0.004)
    stated = {"ndcg@10:group=few:margin": 0.11, "ndcg@10:group=most:margin": 0.01, "ndcg@10:group=few:change": -0.2}
    assert not window.false(Verdict("pass", (), stated))
    assert window.false(Verdict("pass", (), stated | {"ndcg@10:group=few:margin": 0.09}))


def test_candidates_at_the_margin_lose_what_the_verdict_states(pool: Pool) -> None:
    found = candidates(pool, 600, 100, np.random.default_rng(0))
    few, most = found["group 1 margins"]
    assert most == "equal"
    assert 0.05 < pool.harm(few, "ndcg@10") < pool.harm(found["group 1.25 margins"][0], "ndcg@10") < 0.2
    assert pool.harm(found["all 1 margins"][1], "ndcg@10") < pool.harm(few, "ndcg@10")


def test_power_grows_with_loss_and_slates_and_one_look_sees_more(pool: Pool) -> None:
    small, large = (power(pool, loss, np.random.default_rng(0), courses=40) for loss in (0.02, 0.1))
    assert (large["all looks"] >= small["all looks"]).all()
    assert (np.diff(small["all looks"]) >= 0).all()
    assert large["one look"][-1] == large["all looks"][-1] == 1
    assert small["one look"].sum() > small["all looks"].sum()


def test_only_an_anchor_ends_a_creeping_chain(pool: Pool) -> None:
    free, held = (chain(pool, 0.03, 0, 6, np.random.default_rng(1), anchored=anchored) for anchored in (False, True))
    assert (free.promoted, free.accused) == (6, 0)
    assert free.lost == pytest.approx(1 - 0.97**6)
    assert held.accused
    assert held.lost < free.lost


def test_the_result_has_a_row_for_each_kind_and_window() -> None:
    result = gate.run(seeds=(0,), windows=(300,), courses=2, chains=1, slates=300, links=1)
    assert result.row("poisoned", "refused | 300").mean == 1
    assert {row.arm for row in result.rows} >= {"equal", "group 1.1 margins", "-2.0%, all looks", "chain equal, anchor"}
    assert result.holds in (True, False)
