"""Recommending out of the catalogue: filters, and a share for each interest."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ranker.catalogue import Catalogue, Item
from ranker.config import Config, Inputs, Objective, Retrieval, Serving
from ranker.errors import RequestError
from ranker.evidence import EMPTY, Act, Evidence
from ranker.inference import Inference
from ranker.model import Model
from ranker.pipeline import Pipeline, Request

GENRES = ["action", "comedy", "drama", "noir"]
NOW = 1_700_000_000_000
BY_INTEREST = Retrieval(share=1.0)


def make(retrieval: Retrieval = BY_INTEREST, candidates: int = 20) -> Pipeline:
    config = Config(
        objectives=(Objective(name="like", event="like"),),
        fields=Inputs(item={"genres": "categories"}),
        interests="genres",
        scale="tiny",
        serving=Serving(slate=10, candidates=candidates, swap=0.0),
        retrieval=retrieval,
    )
    catalogue = Catalogue(config)
    for n in range(60):
        catalogue.put(Item(f"i{n}", {"genres": [GENRES[0] if n < 50 else GENRES[1 + n % 3]]}, NOW - 1000 * n))
    inference = Inference(config, Model(config, torch.Generator().manual_seed(3)).state_dict())
    inference.attach(catalogue)
    return Pipeline(config, inference, catalogue, "v1")


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return make()


def fan(*items: str) -> Evidence:
    return Evidence(history=tuple(Act(item, "like", NOW - 1000 + n) for n, item in enumerate(items)))


def names(pipeline: Pipeline, evidence: Evidence = EMPTY, **asked: object) -> set[str]:
    return {item.id for item in pipeline.rank(Request(user="u", now=NOW, limit=20, **asked), evidence).items}


def test_a_share_of_the_candidates_belongs_to_each_interest():
    evidence = fan("i0", "i1", "i2", "i50")  # three of action, one of i50's genre, which has four items
    rare = {f"i{n}" for n in range(50, 60) if n % 3 == 50 % 3} - {"i50"}
    assert rare <= names(make(), evidence)
    alone = make(Retrieval(share=0.0, tastes=False))
    taste = alone.known("u", evidence, NOW)[0]
    by_utility = alone.inference.retrieve(taste, 20, without=[0, 1, 2, 50]).rows.tolist()
    assert names(alone, evidence) == {f"i{row}" for row in by_utility}


def test_an_interest_has_the_taste_of_its_own_acts(pipeline):
    evidence = fan("i0", "i1", "i2", "i50")
    taste, target_C = pipeline.known("u", evidence, NOW)[:2]
    interests = np.flatnonzero(target_C)
    tastes = pipeline.inference.tastes(taste, evidence, NOW, interests)
    assert sorted(tastes) == interests.tolist()
    only = pipeline.known("v", fan("i0", "i1", "i2"), NOW)[0]
    assert tastes[0] == pytest.approx(only.mean_K, abs=1e-3)  # acts are a millisecond apart
    assert pipeline.inference.tastes(taste, EMPTY, NOW, interests) == {}
    assert pipeline.inference.tastes(taste, evidence, NOW, np.array([3, 99])[:1]).keys() <= {3}


def test_only_the_categories_that_were_asked_for(pipeline):
    assert names(pipeline, categories=["comedy"]) == {f"i{n}" for n in range(50, 60) if n % 3 == 0}
    assert names(pipeline, categories=["comedy", "drama", "noir"]) == {f"i{n}" for n in range(50, 60)}
    with pytest.raises(RequestError, match="did you mean 'comedy'"):
        names(pipeline, categories=["comdy"])


def test_only_what_is_fresh(pipeline):
    assert names(pipeline, fresh_since=NOW - 3000) == {"i0", "i1", "i2", "i3"}
    assert names(pipeline, fresh_since=NOW + 1) == set()
    assert names(pipeline, fresh_since=NOW - 51_000, categories=["comedy", "drama", "noir"]) == {"i50", "i51"}


def test_what_is_excluded_is_replaced_and_named(pipeline):
    slate = pipeline.rank(Request(user="u", now=NOW, limit=60, excluded=["i0", "i7"]), fan("i1"))
    assert len(slate.items) == 57
    assert set(slate.removed) == {
        ("i0", "excluded by the request"),
        ("i7", "excluded by the request"),
        ("i1", "already in the history"),
    }


@given(st.integers(1, 60), st.sets(st.integers(0, 59)), st.integers(0, 60))
@settings(max_examples=15)
def test_never_fewer_than_asked_while_candidates_exist(limit, excluded, fresh):
    pipeline = make()
    slate = pipeline.rank(
        Request(
            user="u",
            now=NOW,
            limit=limit,
            excluded=[f"i{n}" for n in excluded],
            fresh_since=NOW - 1000 * fresh,
            seed=limit,
        ),
        fan("i0", "i50"),
    )
    free = {n for n in range(60) if n <= fresh} - excluded - {0, 50}
    assert len(slate.items) == min(limit, len(free))
