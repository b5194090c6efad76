import io
from pathlib import Path

import pytest
from rich.console import Console

from ranker import events
from ranker.errors import NotFound, PromotionRefused, RegistryError, RequestError
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


def test_a_version_that_nobody_judged_is_promoted_only_by_force_and_can_be_rolled_back(trained: Path) -> None:
    first, second = Registry(trained).versions()
    with pytest.raises(PromotionRefused, match="no verdict was recorded"):
        models(trained, "promote", second, quiet())
    assert models(trained, "promote", second, quiet(), force=True)["version"] == second
    back = models(trained, "rollback", None, quiet())
    assert (back["version"], back["held"]) == (first, True)
    assert models(trained, "release", None, quiet())["held"] is False


def test_what_is_not_there_is_refused(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="name one with --registry"):
        models(tmp_path / "none", "list", None, quiet())
    with pytest.raises(RequestError, match="models promote VERSION"):
        models(trained, "promote", None, quiet())
    with pytest.raises(RegistryError, match="v9"):
        models(trained, "show", "v9", quiet())
