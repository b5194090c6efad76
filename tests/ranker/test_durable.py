from pathlib import Path

from ranker import durable


def test_a_folder_appears_whole_and_what_an_interrupted_write_left_is_swept(tmp_path: Path) -> None:
    durable.create_folder(tmp_path / "one", {"a": b"1", "b": b"2"})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one"]
    (tmp_path / ".two.new").mkdir()
    (tmp_path / ".file.new").write_bytes(b"half")
    durable.sweep(tmp_path)
    durable.remove_folder(tmp_path / "one")
    assert list(tmp_path.iterdir()) == []


def test_replacing_a_file_leaves_the_new_content_and_nothing_else(tmp_path: Path) -> None:
    for body in (b"old", b"new"):
        durable.replace_file(tmp_path / "file", body)
    assert (tmp_path / "file").read_bytes() == b"new"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_line_appended_after_a_torn_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    durable.append(path, b"first")
    with path.open("ab") as file:
        file.write(b"to")
    durable.append(path, b"second")
    assert path.read_bytes().splitlines() == [b"first", b"to", b"second"]
