import numpy as np
import pytest
import torch

from ranker import config
from ranker.catalogue import Catalogue, Item
from ranker.errors import RegistryError
from ranker.evidence import Act, Evidence
from ranker.golden import ACTS, CASES, ITEMS, Case, Golden, made_up
from ranker.inference import Inference
from ranker.model import Model

CONFIG = config.parse(
    {
        "objectives": [{"name": "click", "event": "click"}, {"name": "like", "event": "like"}],
        "fields": {"item": {"genres": "categories"}, "request": {"device": "category"}},
        "interests": "genres",
        "scale": "tiny",
    }
)


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    return Model(CONFIG, torch.Generator().manual_seed(3)).state_dict()


def golden(weights: dict[str, torch.Tensor]) -> Golden:
    catalogue = Catalogue(CONFIG)
    for number in range(60):
        catalogue.put(Item(f"i{number}", {"genres": [f"g{number % 3}"]}, number))
    history = tuple(Act(f"i{number}", "click", number) for number in range(50))
    cases = [Case(Evidence(history=history), {"device": "tv"}, list(catalogue.rows), 1000 + n) for n in range(9)]
    return Golden.record(CONFIG, weights, catalogue, cases)


def test_a_golden_is_small_and_survives_its_bytes(weights: dict[str, torch.Tensor]) -> None:
    one = golden(weights)
    again = Golden.decode(one.encode())
    assert len(again.cases) == CASES
    assert len(again.items) <= CASES * (ITEMS + ACTS)
    assert (again.items, again.cases) == (one.items, one.cases)
    np.testing.assert_array_equal(again.probabilities, one.probabilities)
    assert again.probabilities[0].shape == (ITEMS, 2)


def test_the_same_weights_pass_and_other_weights_do_not(weights: dict[str, torch.Tensor]) -> None:
    one = golden(weights)
    one.check(CONFIG, Inference(CONFIG, weights))
    other = {**weights, "experts.heads_T": weights["experts.heads_T"] + 1}
    with pytest.raises(RegistryError, match="golden case 0"):
        one.check(CONFIG, Inference(CONFIG, other))


def test_a_new_model_without_any_cases_has_an_empty_golden(weights: dict[str, torch.Tensor]) -> None:
    empty = Golden.decode(Golden.record(CONFIG, weights, Catalogue(CONFIG), []).encode())
    assert empty.cases == ()
    empty.check(CONFIG, Inference(CONFIG, weights))


def test_invented_users_are_the_same_for_the_same_seed_and_differ_in_evidence() -> None:
    catalogue = Catalogue(CONFIG)
    assert made_up(CONFIG, catalogue, 1000) == []
    for number in range(5):
        catalogue.put(Item(f"i{number}"))
    cases = made_up(CONFIG, catalogue, 1000, seed=4)
    assert cases == made_up(CONFIG, catalogue, 1000, seed=4)
    assert [len(case.evidence.history) for case in cases] == [0, 4, 8, 12]
    assert all(len(case.items) == 5 for case in cases)
