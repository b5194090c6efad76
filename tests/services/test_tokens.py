"""services/tokens.py: tokens by scope, and signed ranking ids."""

import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ranker.errors import AuthError, ConfigError, EventError
from services.tokens import SCOPES, Scope, Signer, Tokens


def test_each_scope_has_a_file_that_only_its_owner_reads_and_that_stays(tmp_path: Path) -> None:
    tokens = Tokens.open(tmp_path / "tokens")
    for scope in SCOPES:
        file = tmp_path / "tokens" / f"{scope}.token"
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert file.read_text().strip() == tokens[scope]
    assert len({tokens[scope] for scope in SCOPES}) == len(SCOPES)
    assert all(Tokens.open(tmp_path / "tokens")[scope] == tokens[scope] for scope in SCOPES)


def test_processes_that_start_together_agree(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: Tokens.open(tmp_path)["rank"], range(8)))
    assert len(set(found)) == 1
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".token"] * len(SCOPES)


def test_a_token_that_others_can_read_is_refused(tmp_path: Path) -> None:
    Tokens.open(tmp_path)
    (tmp_path / "rank.token").chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        Tokens.open(tmp_path)


@pytest.mark.parametrize("header", [None, "", "Bearer", "Bearer ", "Basic abc", "Bearer wrong", "Bearer \udcff"])
def test_no_token_and_a_wrong_token_are_401(tmp_path: Path, header: str | None) -> None:
    with pytest.raises(AuthError) as caught:
        Tokens.open(tmp_path).check(header, "rank")
    assert caught.value.status == 401
    assert "wrong" not in str(caught.value)


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("needed", SCOPES)
def test_a_token_opens_its_own_scope_only_and_admin_opens_all(tmp_path: Path, scope: Scope, needed: Scope) -> None:
    tokens = Tokens.open(tmp_path)
    header = f"Bearer {tokens[scope]}"
    if scope in (needed, "admin"):
        assert needed in tokens.check(header, needed)
    else:
        with pytest.raises(AuthError) as caught:
            tokens.check(header, needed)
        assert caught.value.status == 403


def test_a_signed_id_is_believed_for_its_user_only(tmp_path: Path) -> None:
    signer = Signer(tmp_path)
    ranking = signer.sign("ann", "v7")
    assert ranking.startswith("plk_")
    assert signer.verify(ranking, "ann") == "v7"
    with pytest.raises(EventError, match="signature"):
        signer.verify(ranking, "bob")
    assert signer.sign("ann", "v7") != ranking


def test_two_keys_are_valid_at_a_time(tmp_path: Path) -> None:
    here, there = Signer(tmp_path), Signer(tmp_path)
    first = here.sign("ann", "v1")
    here.rotate()
    second = here.sign("ann", "v1")
    assert there.verify(second, "ann") == there.verify(first, "ann") == "v1"
    here.rotate()
    there.refresh()
    assert there.verify(second, "ann") == "v1"
    with pytest.raises(EventError):
        there.verify(first, "ann")
    assert stat.S_IMODE((tmp_path / "signing").stat().st_mode) == 0o600


@given(
    user=st.text(max_size=20),
    version=st.text(st.characters(codec="utf-8"), max_size=20),
    at=st.integers(0, 999),
    flip=st.integers(1, 63),
)
def test_every_id_verifies_and_no_changed_id_does(
    tmp_path_factory: pytest.TempPathFactory, user: str, version: str, at: int, flip: int
) -> None:
    signer = Signer(tmp_path_factory.getbasetemp() / "keys")
    ranking = signer.sign(user.encode(errors="replace").decode(), version, 5)
    assert signer.verify(ranking, user.encode(errors="replace").decode()) == version
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    place = 4 + at % (len(ranking) - 5)  # all but the last letter, whose spare bits mean nothing
    other = letters[(letters.index(ranking[place]) + flip) % 64]
    with pytest.raises(EventError):
        signer.verify(ranking[:place] + other + ranking[place + 1 :], user.encode(errors="replace").decode())


@given(st.text(max_size=80))
def test_rubbish_is_never_an_id(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    with pytest.raises(EventError):
        Signer(tmp_path_factory.getbasetemp() / "keys").verify("plk_" + text, "ann")
