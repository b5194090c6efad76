import json

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from experiments import reliability
from experiments.reliability import ITEMS, Base, learn, retest_weights, rows
from ranker.errors import RequestError
from ranker.evidence import Answer


def answer(preferred: int, over: int) -> Answer:
    return Answer(f"{preferred}-{over}", str(preferred), str(over), 0)


def test_retest_weighs_by_how_often_the_same_pair_gets_the_same_answer() -> None:
    other = ITEMS  # the first item of the second kind
    same = [answer(0, 1), answer(0, 1), answer(2, 3), answer(2, 3)]
    torn = [answer(other, other + 1), answer(other + 1, other)]
    assert retest_weights([*same, *torn]) == pytest.approx([0.25] * 4 + [0] * 2)
    assert retest_weights([answer(0, 1)]) == pytest.approx([0])


def test_dawid_skene_believes_those_who_agree_with_the_shared_truth() -> None:
    rng = np.random.default_rng(0)
    pairs = [(2 * n, 2 * n + 1) for n in range(10)]
    good = np.arange(60) < 40
    people = [
        [answer(*(pair if rng.random() < (0.9 if sound else 0.5) else pair[::-1])) for pair in pairs] for sound in good
    ]
    weights = [mine[0] for mine in reliability.dawid_skene_weights(people)]
    assert roc_auc_score(good, weights) > 0.85


def test_a_world_asks_again_the_other_way_round_and_in_the_other_wording() -> None:
    world = reliability.world(0, (0.4, 0.3, 0.3), people=30, pairs=4, again=2)
    assert all(len(answers) == 3 * (4 + 2) for answers in world.people)
    first, second = world.people[0][:2]
    assert {first.preferred, first.over} == {second.preferred, second.over}
    assert first.condition["shown_first"] != second.condition["shown_first"]
    assert first.condition["wording"] != second.condition["wording"]
    again = reliability.world(0, (0.4, 0.3, 0.3), people=30, pairs=4, again=2)
    assert again.people == world.people


def test_base_rewards_are_learned_from_genuine_answers_and_not_from_those_of_weight_zero() -> None:
    world = reliability.world(1, (1.0, 0.0, 0.0), people=120, pairs=10, again=0)
    turned = [[Answer(a.id, a.over, a.preferred, a.time) for a in answers] for answers in world.people]
    ones, zeros = ([np.full(len(answers), w) for answers in world.people] for w in (1.0, 0.0))
    base = learn([*world.people, *turned], [*ones, *zeros], 0)
    true = Base(phi_IK=world.phi_IK, intercept_I=world.intercept_I)
    assert np.corrcoef(base.intercept_I, true.intercept_I)[0, 1] > 0.6
    one_A, other_A = rows(world.people[0])
    found = base.phi_IK @ base.taste(world.people[0], ones[0]) + base.intercept_I
    assert np.mean(found[one_A] > found[other_A]) > 0.8


def test_one_population_says_what_the_arms_and_the_classes_come_to() -> None:
    found = reliability.once(0, "half", trained=40, judged=30, pairs=7, again=4, turns=1)
    assert found["unweighted", "accuracy"] < found["em", "accuracy"] < found["oracle", "accuracy"] + 0.02
    assert found["dawid-skene", "accuracy"] < found["em", "accuracy"]
    assert found["em", "class_auc"] > 0.85
    assert found["em - unweighted", "learned"] == found["em", "learned"] - found["unweighted", "learned"]


def test_the_command_ends_with_one_json_object(capsys: pytest.CaptureFixture[str]) -> None:
    sizes = "--mixes half --trained 20 --judged 12 --pairs 4 --again 2 --seeds 1 --json".split()
    assert reliability.main(sizes) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [row["arm"] for row in found["rows"][:6]] == list(reliability.ARMS)
    assert found["holds"] is False  # not all mixes were run
    assert {"accuracy", "gap_closed", "class_auc", "learned", "accuracy:half"} <= {r["metric"] for r in found["rows"]}


@pytest.mark.parametrize("sizes", ["--pairs 1", "--pairs 4 --again 5", "--judged 2", "--events log.jsonl"])
def test_what_cannot_be_asked_is_refused(sizes: str) -> None:
    with pytest.raises(RequestError):
        reliability.main(sizes.split())
