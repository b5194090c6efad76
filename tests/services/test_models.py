import io
from pathlib import Path

import msgspec
import pytest
from rich.console import Console

from ranker import config as configuration
from ranker import events
from ranker.catalogue import Catalogue, Item
from ranker.errors import NotFound, PromotionRefused, RegistryError, RequestError
from ranker.gate import Verdict
from ranker.golden import Golden, made_up
from ranker.learner import Learner
from ranker.registry import Registry
from ranker.simulation import Population, Tastes
from services import offline
from services.models import models


def quiet() -> Console:
    return Console(file=io.StringIO(), width=200)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    log = folder / "log.jsonl"
    population = Population(Tastes(users=10, items=20, seed=1))
    log.write_bytes(b"\n".join(events.encode(event) for event in population.events(ratings=5)))
    for _ in range(2):
        offline.train([str(log)], None, folder / "registry", quiet())
    return folder / "registry"


def test_the_list_says_which_version_is_served(trained: Path) -> None:
    console = quiet()
    found = models(trained, "list", None, console)
    assert [row["state"] for row in found["versions"]] == [["served"], []]
    assert found["pointer"]["version"] == found["versions"][0]["version"]
    assert found["versions"][1]["version"] in console.file.getvalue()


def test_a_version_is_shown_with_its_decisions(trained: Path) -> None:
    first, _ = Registry(trained).versions()
    found = models(trained, "show", first, quiet())
    assert found["id"] == first
    assert found["decisions"][0]["action"] == "promote"


def test_the_examination_curve_of_a_version_is_shown_with_what_it_rests_on(tmp_path: Path) -> None:
    config = configuration.parse({"objectives": [{"name": "click", "event": "click", "biased": True}], "scale": "tiny"})
    weights = {name: tensor.clone() for name, tensor in Learner(config).weights().items()}
    weights["tower.usual_PT"][1:] = -1.0
    registry, catalogue = Registry(tmp_path), Catalogue(config)
    for item in "abc":
        catalogue.put(Item(item, {}, 1))
    golden = Golden.record(config, weights, catalogue, made_up(config, catalogue, 1))
    still = msgspec.structs.replace(config, serving=configuration.Serving(swap=0.0))
    for chosen, said in ((config, "5% of served slates have a swap"), (still, "rests on repeated items alone")):
        console = quiet()
        version = registry.save(weights, chosen, metrics={}, golden=golden, parent=None)
        curve = models(tmp_path, "show", version, console)["examination"]["click"]
        assert curve[0] == 1
        assert 0.3 < curve[1] == curve[19] < 0.7
        assert "at several places" in console.file.getvalue()
        assert said in console.file.getvalue()


def test_a_version_that_nobody_judged_is_promoted_only_by_force_and_can_be_rolled_back(trained: Path) -> None:
    first, second = Registry(trained).versions()
    with pytest.raises(PromotionRefused, match="no verdict was recorded"):
        models(trained, "promote", second, quiet())
    assert models(trained, "promote", second, quiet(), force=True)["version"] == second
    back = models(trained, "rollback", None, quiet())
    assert (back["version"], back["held"]) == (first, True)
    assert models(trained, "release", None, quiet())["held"] is False
    states = {row["version"]: row["state"] for row in models(trained, "list", None, quiet())["versions"]}
    assert ("forced" in states[second], "forced" in states[first]) == (True, False)
    (mark,) = models(trained, "show", second, quiet())["forced"]
    assert mark["action"] == "force"


def test_a_canary_is_listed_withdrawn_and_every_decision_kept(trained: Path) -> None:
    first, second = Registry(trained).versions()
    served = Registry(trained).current()
    assert served is not None
    tried = second if served.version == first else first
    assert models(trained, "canary", tried, quiet(), share=0.25)["share"] == 0.25
    console = quiet()
    states = {row["version"]: row["state"] for row in models(trained, "list", None, console)["versions"]}
    assert "canary 25%" in states[tried]
    assert "canary 25%" in console.file.getvalue()
    assert models(trained, "withdraw", None, quiet())["canary"] is None
    found = models(trained, "decisions", None, quiet())["decisions"]
    assert [one["action"] for one in found[-2:]] == ["canary", "withdraw"]
    assert models(trained, "decisions", None, quiet(), last=1)["decisions"] == found[-1:]
    reasons = tuple(f"doubt {number}" for number in range(5))
    with pytest.raises(PromotionRefused):
        Registry(trained).promote(tried, Verdict("hold", reasons), who="test")
    console = quiet()
    models(trained, "decisions", None, console, last=1)
    said = [line.strip() for line in console.file.getvalue().splitlines()]
    assert "hold" in said[0]
    assert "refuse" not in said[0]
    assert said[1:] == ["doubt 0", "doubt 1", "doubt 2", "and 2 more, which --json shows"]
    with pytest.raises(RequestError, match="models canary VERSION"):
        models(trained, "canary", None, quiet())


def test_what_is_not_there_is_refused(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="name one with --registry"):
        models(tmp_path / "none", "list", None, quiet())
    with pytest.raises(RequestError, match="models promote VERSION"):
        models(trained, "promote", None, quiet())
    with pytest.raises(RegistryError, match="v9"):
        models(trained, "show", "v9", quiet())
