import threading
from dataclasses import replace

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from ranker.batch import collate
from ranker.catalogue import Catalogue, Item
from ranker.config import Config, parse
from ranker.errors import RegistryError
from ranker.evidence import EMPTY, Act, Answer, Evidence, Mean
from ranker.features import Encoder
from ranker.inference import Inference, Scores
from ranker.join import Example
from ranker.model import Model, _bags
from ranker.slates import Compared
from ranker.taste import Factor, Taste, fuse

NOW = 1_700_000_000_000
HOUR = 3_600_000
ITEMS = 40


def config(**more: object) -> Config:
    plain = {
        "objectives": [
            {"name": "click", "event": "click", "biased": True},
            {"name": "like", "event": "like"},
            {"name": "dwell", "event": "dwell", "kind": "value"},
        ],
        "fields": {
            "item": {"genre": "categories", "title": "text", "price": "number"},
            "user": {"age": "category"},
            "request": {"device": "category"},
        },
        "scale": "tiny",
    }
    return parse({**plain, **more})


def random_model(config: Config, seed: int = 0) -> Model:
    """Every weight away from zero, as after much learning, with counts."""
    generator = torch.Generator().manual_seed(seed)
    model = Model(config, generator).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    rows = config_rows(model)
    seen = torch.randint(rows, (2000, 2), generator=generator)
    times = NOW - torch.randint(20 * HOUR, (2000,), generator=generator)
    outcomes = torch.rand(2000, len(config.objectives), generator=generator)
    model.counters.count(seen, times, torch.ones_like(outcomes), (outcomes > 0.8).float())
    model.get_buffer("offset_T")[-1], model.get_buffer("scale_T")[-1] = 30.0, 12.0
    return model


def config_rows(model: Model) -> int:
    return model.sizes.V // 2


def some_item(n: int, rng: np.random.Generator) -> Item:
    fields = {"genre": [f"g{g}" for g in rng.integers(0, 9, 2)], "title": f"the {n} of w{n % 7}", "price": float(n)}
    return Item(f"i{n}", fields, NOW - int(rng.integers(0, 100 * HOUR)))


def some_catalogue(config: Config, count: int = ITEMS) -> Catalogue:
    found, rng = Catalogue(config), np.random.default_rng(1)
    for n in range(count):
        found.put(some_item(n, rng))
    return found


def some_evidence(acts: int, seed: int = 0) -> Evidence:
    rng = np.random.default_rng(seed)
    history = [
        Act(f"i{rng.integers(ITEMS + 5)}", "rate", NOW - int(rng.integers(0, 200 * HOUR)), float(rng.integers(1, 6)))
        for _ in range(acts)
    ]
    history += [Act(f"i{rng.integers(ITEMS)}", "click", NOW - HOUR)] * (acts > 3)
    return Evidence({"age": "20"}, tuple(history), means={"rate": Mean(10, 35.0)})


def some_example(items: tuple[str, ...], acts: int = 6, seed: int = 0) -> Example:
    count = len(items)
    return Example(
        ranking="r",
        user="u",
        time=NOW,
        evidence=some_evidence(acts, seed),
        request={"device": "tv"},
        items=items,
        positions=np.arange(count, dtype=np.int32) - 1,
        labels_NT=np.zeros((count, 3), np.float32),
        mask_NT=np.ones((count, 3), np.float32),
    )


def score(inference: Inference, evidence: Evidence, rows: object, **more: object) -> Scores:
    asked = {"user": evidence.fields, "request": {"device": "tv"}, "now": NOW, **more}
    return inference.score(inference.taste(evidence, NOW), rows=np.array(rows, np.int64), **asked)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def built() -> tuple[Config, Model, Catalogue, Inference]:
    settings_ = config()
    model, known = random_model(settings_), some_catalogue(settings_)
    inference = Inference(settings_, model.state_dict())
    inference.attach(known)
    return settings_, model, known, inference


def test_one_candidate_scores_alike_in_both_forms(built):
    settings_, model, known, inference = built
    out = model(collate([some_example(("i3",))], known, Encoder(settings_)))
    found = score(inference, some_evidence(6), [3])
    assert found.logits_NT == pytest.approx(out.logits_RT.detach().numpy(), abs=1e-5)
    assert found.utility_N == pytest.approx(out.utility_R.detach().numpy(), abs=1e-5)


@settings(max_examples=25)
@given(st.lists(st.tuples(st.lists(st.integers(0, ITEMS + 3), min_size=1, max_size=6), st.integers(0, 30)), min_size=1))
def test_both_forms_agree_on_any_slates(built, slates):
    settings_, model, known, inference = built
    examples = [
        some_example(tuple(f"i{n}" for n in dict.fromkeys(ns)), acts, seed) for seed, (ns, acts) in enumerate(slates)
    ]
    with torch.no_grad():
        out = model(collate(examples, known, Encoder(settings_)))
    start = 0
    for slate, example in enumerate(examples):
        end = start + len(example.items)
        taste = inference.taste(example.evidence, NOW)
        assert taste.mean_K == pytest.approx(out.mean_UK[slate].numpy(), abs=1e-5)
        assert taste.precision_K == pytest.approx(out.precision_UK[slate].numpy(), abs=1e-4)
        # what the catalogue does not hold comes as an extra item, seen now for the first time
        shown = [known.get(item) or Item(item, {}, NOW) for item in example.items]
        found = inference.score(
            taste,
            user=example.evidence.fields,
            request=example.request,
            rows=np.zeros(0, np.int64),
            extra=shown,
            now=NOW,
        )
        assert found.logits_NT == pytest.approx(out.logits_RT[start:end].numpy(), abs=1e-5)
        at = inference.probabilities_at(found.logits_NT, example.positions, example.request)
        wanted = torch.sigmoid(out.logits_RT + out.tower_RT)[start:end, :2].numpy()
        assert at[:, :2] == pytest.approx(wanted, abs=1e-5)
        start = end


@settings(max_examples=15)
@given(
    st.lists(
        st.tuples(st.integers(0, ITEMS + 3), st.integers(0, ITEMS + 3), st.sampled_from(["preferred", "both", "skip"])),
        max_size=12,
    ),
    st.integers(0, 8),
)
def test_both_forms_take_answers_alike(built, told, acts):
    settings_, model, known, inference = built
    answers = tuple(Answer(f"a{n}", f"i{a}", f"i{b}", NOW, outcome) for n, (a, b, outcome) in enumerate(told))
    example = replace(
        some_example(("i1", "i2", "i3"), acts), evidence=structs.replace(some_evidence(acts), answers=answers)
    )
    with torch.no_grad():
        out = model(collate([some_example(("i4",)), example], known, Encoder(settings_)))
    taste = inference.taste(example.evidence, NOW)
    assert taste.mean_K == pytest.approx(out.mean_UK[1].numpy(), abs=1e-4)
    assert taste.sources["answers"] == sum(one.outcome != "skip" and one.preferred != one.over for one in answers)
    found = score(inference, example.evidence, [1, 2, 3])
    assert found.utility_N == pytest.approx(out.utility_R[1:].numpy(), abs=1e-3)


def test_what_is_well_known_is_a_tag_once_there_are_impressions(built):
    settings_, model, known, inference = built
    assert {"popularity=well known", "popularity=little known"} <= set(inference.speech[0].keys)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    weights["counters.counts_VF"].zero_()
    unseen = Inference(settings_, weights)
    unseen.attach(known)
    assert all("popularity" not in key for key in unseen.speech[0].columns)


def test_an_answer_raises_what_was_preferred_and_narrows_the_taste(built):
    *_, inference = built
    plain = some_evidence(6)
    told = structs.replace(plain, answers=(Answer("a", "i1", "i2", NOW),))
    before, after = inference.taste(plain, NOW), inference.taste(told, NOW)
    margins = [float(np.diff(score(inference, evidence, [2, 1]).utility_N)[0]) for evidence in (plain, told)]
    assert margins[1] > margins[0]
    spread_K = np.diag(np.linalg.inv(after.precision_K))
    # beside answers a history is held less firmly, but nothing is known less than before anything was
    prior_K = 1 / inference.prior.precision
    assert (spread_K <= np.minimum(1 / before.precision_K + 0.3 * prior_K, prior_K) + 1e-6).all()


def test_acts_that_slates_share_count_and_learn_as_if_each_had_her_own(built):
    settings_, model, known, _ = built
    whole = some_evidence(12)
    less = structs.replace(whole, history=whole.history[:4] + whole.history[5:])
    examples = [replace(some_example(("i5", "i6")), evidence=evidence) for evidence in (whole, less, whole)]
    apart = [replace(example, user=f"u{place}") for place, example in enumerate(examples)]
    found = []
    for several in (examples, apart):
        batch = collate(several, known, Encoder(settings_))
        model.zero_grad()
        out = model(batch, rows := model.gather(batch))
        (out.utility_R.square().sum() + out.precision_UK.log().sum()).backward()
        parts = (rows.table_VD, model.act_item, model.act_kind, model.act_inputs, model.history.out)
        found.append((len(batch.act_item_A), out.mean_UK.detach(), *(part.grad.clone() for part in parts)))
    model.zero_grad()
    acts = len(whole.history)
    assert (found[0][0], found[1][0]) == (acts, 3 * acts - 1)
    for one, other in zip(found[0][1:], found[1][1:], strict=True):
        assert one.abs().max() > 0
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_a_comparisons_variance_is_that_of_its_users_taste(built):
    settings_, model, known, inference = built
    told = structs.replace(some_evidence(6), answers=(Answer("a", "i1", "i2", NOW), Answer("b", "i3", "i2", NOW)))
    pair = (Compared(0, 1, 1.0),)
    examples = [
        replace(some_example(("i5", "i6")), pairs=pair),
        replace(some_example(("i5", "i6")), evidence=told, pairs=pair),
    ]
    batch = collate(examples, known, Encoder(settings_))
    with torch.no_grad():
        out = model(batch)
        assert torch.equal(model.margins(batch), out.margin_P)
    phi_NK, intercept_N = inference.base(np.array([5, 6]))
    difference_K = phi_NK[0] - phi_NK[1]
    for place, example in enumerate(examples):
        taste = inference.taste(example.evidence, NOW)
        precision_KK = np.diag(taste.precision_K) if taste.precision_K.ndim == 1 else taste.precision_K
        margin = difference_K @ taste.mean_K + intercept_N[0] - intercept_N[1]
        assert float(out.margin_P[place]) == pytest.approx(margin, abs=1e-4)
        wanted = difference_K @ np.linalg.solve(precision_KK, difference_K)
        assert float(out.variance_P[place]) == pytest.approx(wanted, rel=1e-3)


def test_a_score_does_not_depend_on_the_other_candidates_or_their_order(built):
    *_, inference = built
    evidence, rows = some_evidence(9), np.random.default_rng(0).permutation(ITEMS)
    together, ordered = score(inference, evidence, rows), score(inference, evidence, range(ITEMS))
    assert together.logits_NT == pytest.approx(ordered.logits_NT[rows], abs=1e-5)
    for n in (0, 17):
        assert score(inference, evidence, [n]).logits_NT[0] == pytest.approx(ordered.logits_NT[n], abs=1e-5)
        assert score(inference, evidence, [n]).utility_N[0] == pytest.approx(ordered.utility_N[n], abs=1e-5)


def test_an_extra_item_scores_like_the_same_item_of_the_catalogue(built):
    _, _, known, inference = built
    rows = score(inference, some_evidence(5), [4, 7])
    mixed = score(inference, some_evidence(5), [4], extra=[known.items[7]])
    assert mixed.logits_NT == pytest.approx(rows.logits_NT, abs=1e-5)
    assert mixed.probabilities_NT == pytest.approx(rows.probabilities_NT, abs=1e-5)


def test_a_value_objective_is_predicted_in_its_own_units(built):
    *_, inference = built
    found = score(inference, some_evidence(5), [1, 2])
    assert found.probabilities_NT[:, 2] == pytest.approx(30 + 12 * found.logits_NT[:, 2], rel=1e-6)
    assert found.probabilities_NT[:, 0] == pytest.approx(1 / (1 + np.exp(-found.logits_NT[:, 0])), abs=1e-6)


def test_no_candidates_give_no_scores(built):
    *_, inference = built
    assert score(inference, EMPTY, []).logits_NT.shape == (0, 3)


def test_rows_that_are_not_attached_are_refused(built):
    *_, inference = built
    for rows in ([-1], [ITEMS]):
        with pytest.raises(IndexError, match="40 items are attached"):
            score(inference, EMPTY, rows)


# -- taste ---------------------------------------------------------------------------------------------------------


def test_without_history_the_taste_is_the_prior(built):
    _, model, _, inference = built
    taste = inference.taste(EMPTY, NOW)
    precision_K, mean_K = model.history.prior()
    assert taste.mean_K == pytest.approx(mean_K.detach().numpy(), abs=1e-6)
    assert taste.precision_K == pytest.approx(precision_K.detach().numpy())
    assert taste.sources == {"history": 0, "answers": 0, "words": 0}


@settings(max_examples=20)
@given(st.permutations(range(9)))
def test_the_order_of_acts_does_not_matter(built, order):
    *_, inference = built
    evidence = some_evidence(8)
    shuffled = msgspec.structs.replace(evidence, history=tuple(evidence.history[n] for n in order))
    one, other = inference.taste(evidence, NOW), inference.taste(shuffled, NOW)
    assert one.mean_K == pytest.approx(other.mean_K, abs=1e-5)
    assert one.precision_K == pytest.approx(other.precision_K, rel=1e-5)


@settings(max_examples=20)
@given(st.integers(0, 15))
def test_more_acts_never_widen_the_taste(built, count):
    *_, inference = built
    evidence = some_evidence(16)
    fewer, more = (inference.taste(Evidence({}, evidence.history[:n]), NOW) for n in (count, count + 1))
    assert (more.precision_K >= fewer.precision_K).all()
    assert more.sources["history"] == count + 1


def test_only_the_last_acts_of_a_long_history_count(built):
    *_, inference = built
    evidence = some_evidence(60)
    kept = msgspec.structs.replace(evidence, history=evidence.history[-inference.sizes.acts :])
    assert np.array_equal(inference.taste(evidence, NOW).mean_K, inference.taste(kept, NOW).mean_K)


def test_another_source_fuses_by_addition(built):
    *_, inference = built
    acted, K = inference.taste(some_evidence(5), NOW), inference.sizes.K
    answers = Factor(np.eye(K, dtype=np.float32), np.ones(K, np.float32))
    taste = fuse(
        Factor(acted.precision_K, acted.precision_K * acted.mean_K), [answers], {**acted.sources, "answers": 1}
    )
    found = inference.score(taste, user={}, request={}, rows=np.arange(3), now=NOW)
    assert np.isfinite(found.logits_NT).all()
    assert taste.precision_K.shape == (K, K)


# -- the item side -------------------------------------------------------------------------------------------------


def test_an_id_never_seen_is_neutral_and_its_features_speak():
    settings_ = config()
    model = Model(settings_, torch.Generator().manual_seed(0))
    inference = Inference(settings_, model.state_dict())
    inference.attach(Catalogue(settings_))
    plain = [Item(name, {"genre": ["noir"]}, NOW) for name in ("x", "y")]
    found = score(inference, EMPTY, [], extra=[*plain, Item("x", {"genre": ["war"]}, NOW)])
    assert np.array_equal(found.utility_N[0], found.utility_N[1])
    assert found.utility_N[2] != found.utility_N[0]


def test_attaching_takes_up_new_and_replaced_items_only_once(built):
    settings_, model, *_ = built
    known = some_catalogue(settings_)
    inference = Inference(settings_, model.state_dict())
    inference.attach(known)
    before = score(inference, some_evidence(5), range(ITEMS))
    rng = np.random.default_rng(7)
    for n in range(ITEMS, 3 * ITEMS):
        known.put(some_item(n, rng))
    known.put(Item("i5", {"genre": ["noir"]}, NOW))
    inference.attach(known)
    grown = Inference(settings_, model.state_dict())
    grown.attach(known)
    after, fresh = (score(i, some_evidence(5), range(3 * ITEMS)) for i in (inference, grown))
    assert after.logits_NT == pytest.approx(fresh.logits_NT, abs=1e-5)
    same = np.arange(ITEMS) != 5
    # the replaced item may stand in the history, so compare where it does not matter: the utility of the prior
    prior = inference.taste(EMPTY, NOW)
    one, other = (i.score(prior, user={}, request={}, rows=np.arange(ITEMS), now=NOW) for i in (inference, grown))
    assert np.allclose(one.logits_NT, other.logits_NT, atol=1e-5)
    assert not np.allclose(after.logits_NT[5], before.logits_NT[5], atol=1e-3)
    assert same.sum() == ITEMS - 1
    side = inference._side
    inference.attach(known)
    assert inference._side is side


def test_above_the_cached_size_scores_stay_the_same(built):
    settings_, model, known, inference = built
    frugal = Inference(settings_, model.state_dict(), cached=ITEMS - 1)
    frugal.attach(known)
    one, other = (score(i, some_evidence(5), [3, 1], extra=[Item("new")]) for i in (inference, frugal))
    assert one.logits_NT == pytest.approx(other.logits_NT, abs=1e-5)


def test_growing_past_the_cached_size_changes_over(built):
    settings_, model, *_ = built
    known = some_catalogue(settings_, 10)
    inference = Inference(settings_, model.state_dict(), cached=20)
    inference.attach(known)
    before = score(inference, EMPTY, range(10))
    rng = np.random.default_rng(2)
    for n in range(10, 30):
        known.put(some_item(n, rng))
    inference.attach(known)
    assert inference.attached == 30
    assert score(inference, EMPTY, range(10)).logits_NT == pytest.approx(before.logits_NT, abs=1e-5)


def test_retrieval_is_ordered_by_utility(built):
    *_, inference = built
    taste = inference.taste(some_evidence(7), NOW)
    utility_N = inference.score(taste, user={}, request={}, rows=np.arange(ITEMS), now=NOW).utility_N
    found = inference.retrieve(taste, 10).rows
    assert utility_N[found] == pytest.approx(np.sort(utility_N)[::-1][:10], abs=1e-5)


def test_readers_are_never_disturbed_while_a_catalogue_grows(built):
    settings_, model, *_ = built
    known = some_catalogue(settings_)
    inference = Inference(settings_, model.state_dict())
    inference.attach(known)
    evidence = msgspec.structs.replace(some_evidence(5), history=(Act("i1", "click", NOW),))
    wanted, wrong, done = score(inference, evidence, range(10)).logits_NT, [], threading.Event()

    def read() -> None:
        while not done.is_set():
            found = score(inference, evidence, range(10)).logits_NT
            if not np.allclose(found, wanted, atol=1e-5):
                wrong.append(found)

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    rng = np.random.default_rng(3)
    for n in range(ITEMS, 10 * ITEMS):
        known.put(some_item(n, rng))
        known.put(Item(f"i{20 + n % 20}", {"price": n}, NOW))
        inference.attach(known)
    done.set()
    for reader in readers:
        reader.join()
    assert not wrong


# -- weights -------------------------------------------------------------------------------------------------------


def test_a_seed_gives_the_same_model_and_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    one, other = (Model(config(), torch.Generator().manual_seed(5)).state_dict() for _ in range(2))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert torch.equal(torch.get_rng_state(), before)
    third = Model(config(), torch.Generator().manual_seed(6)).state_dict()
    assert not torch.equal(one["first"], third["first"])


def test_training_draws_from_its_own_generator(built):
    settings_, _, known, _ = built
    batch = collate([some_example(("i1", "i2", "i3"))] * 8, known, Encoder(settings_))
    model = random_model(settings_).train()
    model.generator.manual_seed(1)
    first = model(batch)
    model.generator.manual_seed(1)
    again, other = model(batch), model(batch)
    assert torch.equal(first.logits_RT, again.logits_RT)
    assert not torch.equal(first.logits_RT, other.logits_RT)


def test_missing_or_misshapen_weights_are_named(built):
    settings_, model, *_ = built
    weights = model.state_dict()
    with pytest.raises(RegistryError, match=r"weights\[first\]"):
        Inference(settings_, {name: t for name, t in weights.items() if name != "first"})
    with pytest.raises(RegistryError, match=r"weights\[phi\].*needs shape"):
        Inference(settings_, {**weights, "phi": torch.zeros(2, 2)})


def test_the_tower_is_absent_at_serving(built):
    settings_, model, known, inference = built
    weights = {n: t + 100 if n.startswith("tower.") else t for n, t in model.state_dict().items()}
    other = Inference(settings_, weights)
    other.attach(known)
    one, two = (score(i, some_evidence(5), range(9)) for i in (inference, other))
    assert np.array_equal(one.probabilities_NT, two.probabilities_NT)
    unknown = np.full(9, -1, np.int32)
    assert other.probabilities_at(two.logits_NT, unknown, {"device": "tv"}) == pytest.approx(two.probabilities_NT)
    at_first = other.probabilities_at(two.logits_NT, 0 * unknown, {"device": "tv"})
    assert (at_first[:, 0] > two.probabilities_NT[:, 0]).all()
    assert at_first[:, 1:] == pytest.approx(two.probabilities_NT[:, 1:])


def test_the_examination_curve_starts_at_one(built):
    *_, inference = built
    curve = inference.examination(20)
    assert curve.shape == (20, 3)
    assert (curve[0] == 1).all()


def test_gathered_rows_get_the_same_gradients_as_the_whole_tables(built):
    settings_, _, known, _ = built
    batch = collate([some_example(("i1", "i2")), some_example(("i3",), 2)], known, Encoder(settings_))
    model = random_model(settings_)
    rows = model.gather(batch)
    model(batch, rows).logits_RT.sum().backward()
    small = [rows.table_VD.grad, rows.wide_VT.grad]
    assert model.table_VD.grad is None
    model.zero_grad()
    model(batch).logits_RT.sum().backward()
    for part, whole in zip(small, (model.table_VD.grad, model.wide_VT.grad), strict=True):
        assert torch.allclose(part, whole[batch.touched_V], atol=1e-6)


def test_the_fast_backward_of_bags_is_the_slow_one(built):
    settings_, _, known, _ = built
    batch = collate([some_example(("i1", "i2")), some_example(("i3",), 9)], known, Encoder(settings_))
    rows = random_model(settings_).gather(batch)
    plain = rows.table_VD.detach().clone().requires_grad_()
    wanted = torch.nn.functional.embedding_bag(
        batch.bag_rows, plain, batch.bag_starts, mode="sum", per_sample_weights=batch.bag_weights
    )
    found = _bags(rows.table_VD, batch.bag_rows, batch.bag_starts, batch.bag_weights)
    assert torch.equal(found, wanted)
    for side in (found, wanted):
        side.square().sum().backward()
    assert torch.allclose(rows.table_VD.grad, plain.grad, atol=1e-5)


def test_every_weight_learns(built):
    settings_, _, known, _ = built
    model = random_model(settings_)
    out = model(collate([some_example(("i1", "i2")), some_example(("i3",))], known, Encoder(settings_)))
    ((out.logits_RT + out.tower_RT).square().sum() + out.utility_R.sum()).backward()
    idle = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    # summaries and answers are learned from comparisons
    idle = [name for name in idle if not name.startswith(("summary.", "framing."))]
    # no user or request number is declared here
    assert set(idle) == {"numbers.user", "numbers.request"}


# -- extremes ------------------------------------------------------------------------------------------------------

anything = st.none() | st.floats(allow_nan=False) | st.text(max_size=20) | st.lists(st.text(max_size=5), max_size=3)


@settings(max_examples=40)
@given(
    st.dictionaries(st.sampled_from(["genre", "title", "price"]), anything),
    st.floats(allow_nan=False),
    st.integers(0, 2**53),
)
def test_scores_are_finite_whatever_comes(built, fields, value_, now):
    *_, inference = built
    evidence = Evidence({"age": ["x", 1e308]}, (Act("gone", "rate", 2**53, value_), Act("i1", "rate", 0, -value_)))
    taste = inference.taste(evidence, now)
    found = inference.score(
        taste,
        user=evidence.fields,
        request={"device": None},
        rows=np.arange(3),
        extra=[Item("e", fields, 2**53)],
        now=now,
    )
    assert np.isfinite(found.probabilities_NT).all()
    assert np.isfinite(found.utility_N).all()


def test_a_text_of_ten_thousand_characters_is_scored(built):
    *_, inference = built
    found = score(inference, EMPTY, [], extra=[Item("e", {"title": "wörd " * 2000, "price": 1e300})])
    assert np.isfinite(found.logits_NT).all()


def test_scoring_changes_no_input(built):
    *_, inference = built
    evidence, rows = some_evidence(5), np.arange(5)
    taste = inference.taste(evidence, NOW)
    before = [taste.mean_K.copy(), taste.precision_K.copy()]
    inference.score(taste, user=evidence.fields, request={}, rows=rows, now=NOW)
    assert rows.tolist() == [0, 1, 2, 3, 4]
    assert all(np.array_equal(a, b) for a, b in zip((taste.mean_K, taste.precision_K), before, strict=True))
    assert evidence == some_evidence(5)


def test_scores_repeat_exactly(built):
    *_, inference = built
    one, other = (score(inference, some_evidence(5), range(ITEMS)) for _ in range(2))
    assert np.array_equal(one.logits_NT, other.logits_NT)


@pytest.mark.parametrize("scale", ["small", "full"])
def test_bfloat16_experts_stay_close(scale):
    settings_ = config(scale=scale)
    model, known = random_model(settings_), some_catalogue(settings_)
    found = []
    for bf16 in (False, True):
        inference = Inference(settings_, model.state_dict(), bf16=bf16)
        inference.attach(known)
        found.append(score(inference, some_evidence(9), range(ITEMS)).probabilities_NT[:, :2])
    assert np.abs(found[0] - found[1]).max() < 1e-2


def test_a_taste_of_another_source_keeps_its_fields():
    taste = Taste(mean_K=np.zeros(2, np.float32), precision_K=np.ones(2, np.float32))
    assert replace(taste, acted=frozenset({"a"})).acted == {"a"}
