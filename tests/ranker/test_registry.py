import multiprocessing
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from ranker import config, registry
from ranker.errors import PromotionRefused, RegistryError
from ranker.evidence import Act, Evidence
from ranker.gate import Verdict
from ranker.golden import Case, Golden
from ranker.registry import Registry

CONFIG = config.parse({"objectives": [{"name": "click", "event": "click"}], "scale": "tiny"})
GOLDEN = Golden(
    (), (Case(Evidence(history=(Act("a", "click", 5),)), {"device": "x"}, ["a"], 9),), (np.ones((1, 1), np.float32),)
)
PASS, HOLD, REFUSE = (
    Verdict("pass", ("better",), {"loss": 0.1}),
    Verdict("hold", ("few slates",)),
    Verdict("refuse", ("worse",)),
)


def save(kept: Registry, value: float = 1.0, parent: str | None = None) -> str:
    weights = {"w": torch.full((2, 3), value), "n": torch.tensor([7], dtype=torch.int64)}
    return kept.save(weights, CONFIG, metrics={"auc": {"click": 0.7}}, golden=GOLDEN, parent=parent)


@pytest.fixture
def kept(tmp_path: Path) -> Registry:
    return Registry(tmp_path / "registry")


def test_a_version_comes_back_as_it_was_saved(kept: Registry) -> None:
    version = kept.load(save(kept, parent="v0"))
    torch.testing.assert_close(version.weights["w"], torch.ones(2, 3))
    assert version.config == CONFIG
    assert (version.manifest.parent, version.manifest.metrics) == ("v0", {"auc": {"click": 0.7}})
    assert version.golden.cases == GOLDEN.cases
    assert version.golden.probabilities[0].tolist() == [[1.0]]
    assert kept.current() is None


@pytest.mark.parametrize("name", ["weights.safetensors", "golden.safetensors", "manifest.json"])
def test_one_changed_byte_in_any_file_is_noticed_and_the_file_named(kept: Registry, name: str) -> None:
    version = save(kept)
    path = kept.root / "versions" / version / name
    body = bytearray(path.read_bytes())
    place = body.find(b"click") if name == "manifest.json" else len(body) - 1
    body[place] ^= 1
    path.write_bytes(bytes(body))
    with pytest.raises(RegistryError, match=name):
        kept.load(version)
    with pytest.raises(RegistryError):
        kept.promote(version, PASS, who="test")
    assert kept.current() is None


def test_a_missing_file_a_missing_version_and_a_path_for_a_name_are_refused(kept: Registry) -> None:
    version = save(kept)
    (kept.root / "versions" / version / "weights.safetensors").unlink()
    for name in (version, "v000009-abc", "../elsewhere", ""):
        with pytest.raises(RegistryError):
            kept.load(name)


def test_weights_that_are_not_finite_are_never_saved(kept: Registry) -> None:
    with pytest.raises(RegistryError, match="diverged"):
        save(kept, float("nan"))


def test_tensors_other_than_the_manifest_says_are_refused(kept: Registry) -> None:
    version = save(kept)
    folder = kept.root / "versions" / version
    manifest = kept.manifest(version)
    weights = load_file(folder / "weights.safetensors")
    save_file({**weights, "w": torch.ones(3, 2)}, folder / "weights.safetensors")
    body = (folder / "weights.safetensors").read_bytes()
    files = {**manifest.files, "weights.safetensors": registry.durable.digest(body)}
    forged = registry.msgspec.structs.replace(manifest, id="v000002", files=files)
    forged = registry.msgspec.structs.replace(forged, id=f"v000002-{registry._digest(forged)}")
    folder = folder.rename(folder.with_name(forged.id))
    (folder / "manifest.json").write_bytes(registry.msgspec.json.encode(forged))
    with pytest.raises(RegistryError, match="tensors are not those"):
        kept.load(forged.id)


def test_only_a_passing_verdict_moves_the_pointer_and_every_refusal_is_kept(kept: Registry) -> None:
    first, second = save(kept, 1), save(kept, 2)
    kept.promote(first, PASS, who="trainer")
    for verdict in (HOLD, REFUSE):
        with pytest.raises(PromotionRefused, match=verdict.reasons[0]):
            kept.promote(second, verdict, who="trainer")
    assert kept._served().version == first
    assert [(d.action, d.version, d.reasons) for d in kept.decisions()] == [
        ("promote", first, ("better",)),
        ("refuse", second, ("few slates",)),
        ("refuse", second, ("worse",)),
    ]
    assert kept.decisions(last=1)[0].reasons == ("worse",)


def test_force_overrides_a_verdict_and_leaves_a_mark_for_good(kept: Registry) -> None:
    version = save(kept)
    kept.promote(version, REFUSE, force=True, who="ada")
    (mark,) = kept.forced(version)
    assert (mark.who, mark.decision, mark.reasons) == ("ada", "refuse", ("worse",))
    assert kept.load(version).id == version


def test_a_generation_that_moved_meanwhile_is_refused(kept: Registry) -> None:
    first, second = save(kept, 1), save(kept, 2)
    judged = kept.promote(first, PASS, who="a").generation
    kept.promote(second, PASS, generation=judged, who="b")
    with pytest.raises(RegistryError, match="judge again"):
        kept.promote(first, PASS, generation=judged, who="c")


def test_rollback_goes_back_step_by_step_and_holds_until_released(kept: Registry) -> None:
    versions = [save(kept, n) for n in range(3)]
    for version in versions:
        kept.promote(version, PASS, who="t")
    assert kept.rollback(who="ada").version == versions[1]
    pointer = kept.rollback(who="ada")
    assert (pointer.version, pointer.held, pointer.previous) == (versions[0], True, None)
    with pytest.raises(PromotionRefused, match="release"):
        kept.promote(versions[2], PASS, who="t")
    with pytest.raises(RegistryError, match="name a version"):
        kept.rollback(who="ada")
    kept.release(who="ada")
    assert kept.promote(versions[2], PASS, who="t").previous == versions[0]
    assert kept.rollback(who="ada", to=versions[1]).version == versions[1]


def test_prune_keeps_the_newest_the_live_the_previous_and_the_pinned(kept: Registry) -> None:
    versions = [save(kept, n) for n in range(8)]
    for version in versions[1:3]:
        kept.promote(version, PASS, who="t")
    kept.pin(versions[4], who="ada")
    (kept.root / "versions" / ".v000099-x.new").mkdir()
    assert kept.prune(keep=2) == [versions[0], versions[3], versions[5]]
    assert kept.versions() == [versions[n] for n in (1, 2, 4, 6, 7)]
    assert not list((kept.root / "versions").glob(".*"))
    kept.pin(versions[4], who="ada", pinned=False)
    assert kept.prune(keep=2) == [versions[4]]


def test_a_reader_in_another_object_sees_the_pointer_move(kept: Registry) -> None:
    other = Registry(kept.root)
    assert other.current() is None
    first, second = save(kept, 1), save(kept, 2)
    kept.promote(first, PASS, who="t")
    seen = other.current()
    assert seen is not None
    assert seen.version == first
    assert other.current() is seen
    kept.promote(second, PASS, who="t")
    again = other.current()
    assert again is not None
    assert (again.version, again.previous, again.generation) == (second, first, 2)


def test_a_decision_line_torn_by_a_crash_hides_no_other(kept: Registry) -> None:
    version = save(kept)
    kept.promote(version, PASS, who="t")
    with (kept.root / "decisions.jsonl").open("ab") as file:
        file.write(b'{"time":1,"act')
    kept.promote(version, PASS, who="u")
    assert [decision.who for decision in kept.decisions()] == ["t", "u"]


def _promote_often(root: str, value: int) -> None:
    kept = Registry(Path(root))
    for _ in range(5):
        version = save(kept, value)
        kept.promote(version, PASS, who=str(value))


def test_two_processes_that_save_and_promote_at_once_lose_nothing(kept: Registry) -> None:
    context = multiprocessing.get_context("fork")
    both = [context.Process(target=_promote_often, args=(str(kept.root), value)) for value in (1, 2)]
    for one in both:
        one.start()
    for one in both:
        one.join()
        assert one.exitcode == 0
    pointer = kept.current()
    assert pointer is not None
    assert pointer.generation == 10
    assert len(kept.versions()) == len(kept.decisions()) == 10


def test_what_the_learner_needs_to_go_on_comes_back_and_is_checked(kept: Registry) -> None:
    weights = {"w": torch.ones(2)}
    plain = save(kept)
    version = kept.save(weights, CONFIG, metrics={}, golden=GOLDEN, parent=None, state={"adam.0": torch.arange(3)})
    assert kept.state(plain) is None
    state = kept.state(version)
    assert state is not None
    assert torch.equal(state["adam.0"], torch.arange(3))
    path = kept.root / "versions" / version / "learner.safetensors"
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(RegistryError, match="learner"):
        kept.state(version)


def test_a_canary_is_tried_on_a_share_grows_and_is_withdrawn_with_its_reasons(kept: Registry) -> None:
    first, second = save(kept, 1), save(kept, 2)
    kept.promote(first, PASS, who="t")
    assert kept.canary(second, 0.05, who="ada").share == 0.05
    pointer = kept.canary(second, 0.2, who="monitor", verdict=HOLD)
    assert (pointer.version, pointer.canary, pointer.share) == (first, second, 0.2)
    assert pointer.since >= pointer.began > 0
    pointer = kept.withdraw(who="monitor", reasons=("clicks fell",), verdict=REFUSE)
    assert (pointer.version, pointer.canary, pointer.share, pointer.began, pointer.since) == (first, None, 0.0, 0, 0)
    assert [(d.action, d.version, d.reasons, d.measures) for d in kept.decisions()[1:]] == [
        ("canary", second, ("5% of the users",), {}),
        ("grow", second, ("20% of the users", "few slates"), {}),
        ("withdraw", second, ("clicks fell",), {}),
    ]
    with pytest.raises(RegistryError, match="none to withdraw"):
        kept.withdraw(who="ada")


def test_a_canary_needs_a_sound_version_a_share_and_a_pointer_that_is_free(kept: Registry) -> None:
    first, second, third = (save(kept, n) for n in range(3))
    with pytest.raises(RegistryError, match="promote a version first"):
        kept.canary(first, 0.1, who="t")
    generation = kept.promote(first, PASS, who="t").generation
    for version, share, told in ((second, 1.0, "share"), (second, 0.0, "share"), (first, 0.1, "everybody already")):
        with pytest.raises(RegistryError, match=told):
            kept.canary(version, share, who="t")
    kept.canary(second, 0.1, who="t", generation=generation)
    with pytest.raises(RegistryError, match="withdraw it first"):
        kept.canary(third, 0.1, who="t")
    for act in (kept.withdraw, lambda **more: kept.canary(second, 0.5, **more)):
        with pytest.raises(RegistryError, match="judge again"):
            act(who="late", generation=generation)
    path = kept.root / "versions" / third / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    kept.withdraw(who="t")
    with pytest.raises(RegistryError, match="weights"):
        kept.canary(third, 0.1, who="t")
    kept.promote(second, PASS, who="t")
    kept.rollback(who="ada")
    with pytest.raises(PromotionRefused, match="release"):
        kept.canary(second, 0.1, who="t")


def test_promotion_and_rollback_end_a_canary_and_say_so(kept: Registry) -> None:
    first, second, third = (save(kept, n) for n in range(3))
    kept.promote(first, PASS, who="t")
    kept.canary(second, 0.5, who="t")
    assert kept.promote(second, PASS, who="monitor").canary is None
    assert kept.decisions()[-1].action == "promote"
    kept.canary(third, 0.5, who="t")
    pointer = kept.rollback(who="ada")
    assert (pointer.version, pointer.canary, pointer.share) == (first, None, 0.0)
    assert [(d.action, d.version) for d in kept.decisions(last=2)] == [("withdraw", third), ("rollback", first)]


def test_prune_keeps_the_canary(kept: Registry) -> None:
    versions = [save(kept, n) for n in range(5)]
    kept.promote(versions[4], PASS, who="t")
    kept.canary(versions[0], 0.1, who="t")
    assert kept.prune(keep=1) == versions[1:4]
