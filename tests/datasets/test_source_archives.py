"""Archives seen as trees: same members packed or unpacked, nothing trusted, nothing left behind."""

from __future__ import annotations

import gc
import io
import os
import pickle
import zipfile
from pathlib import Path

import pytest

from bench.datasets._archives import ArchiveError, Tree

FILES = {"a/one.txt": b"one", "a/b/two.txt": b"two" * 1000, "three.txt": b""}


def zipped(files: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return stream.getvalue()


def contents(tree: Tree, drop: int = 0) -> dict[str, bytes]:
    return {"/".join(m.path.split("/")[drop:]): m.read() for m in tree.members}


@pytest.fixture(autouse=True)
def room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "unpacked"
    monkeypatch.setenv("MEDBENCH_CACHE", str(folder))
    return folder


PACKED = {"x.zip": zipped(FILES), "stored.zip": zipped(FILES, zipfile.ZIP_STORED)}


@pytest.mark.parametrize("name", PACKED)
@pytest.mark.parametrize("wrapped", [None, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_every_packing_shows_the_same_members(name: str, wrapped: int | None, tmp_path: Path, room: Path) -> None:
    content, place = PACKED[name], tmp_path / name
    if wrapped is not None:
        content, place = zipped({f"in/{name}": content}, wrapped), tmp_path / "outer.zip"
    place.write_bytes(content)
    tree = Tree(place)
    assert contents(tree, 1 if wrapped is None else 3) == FILES
    (one,) = (m for m in tree.members if m.name == "one.txt")
    assert one.folder == "a"
    assert pickle.loads(pickle.dumps(one)).read() == b"one"  # as a process that decodes gets it
    del tree
    gc.collect()
    assert not room.exists() or not list(room.iterdir()), "temporary files go with the tree"


def test_a_folder_with_files_and_archives_is_one_tree(tmp_path: Path) -> None:
    top = tmp_path / "set"
    (top / "sub").mkdir(parents=True)
    (top / "plain.txt").write_bytes(b"plain")
    (top / "sub" / "x.zip").write_bytes(PACKED["x.zip"])
    for hidden in (".hidden", "Thumbs.db"):
        (top / hidden).write_bytes(b"")
    assert contents(Tree(top)) == {"plain.txt": b"plain"} | {f"sub/x.zip/{k}": v for k, v in FILES.items()}


def test_junk_of_a_mac_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "m.zip").write_bytes(zipped({"a.png": b"1", "__MACOSX/._a.png": b"2", "x/.DS_Store": b"3"}))
    assert list(contents(Tree(tmp_path / "m.zip"), 1)) == ["a.png"]


def test_the_digest_changes_with_the_content_and_needs_no_unpacking(tmp_path: Path, room: Path) -> None:
    place = tmp_path / "o.zip"
    place.write_bytes(zipped({"i.zip": PACKED["x.zip"]}))
    before = Tree(place, inner=False).digest()
    assert before == Tree(place, inner=False).digest()
    os.utime(place, (1, 1))
    assert before == Tree(place, inner=False).digest(), "an archive's own checksums count, not its time"
    place.write_bytes(zipped({"i.zip": zipped({**FILES, "a/one.txt": b"eno"})}))
    assert before != Tree(place, inner=False).digest()
    assert not room.exists()
    folder = tmp_path / "f"
    folder.mkdir()
    (folder / "a.txt").write_bytes(b"1")
    before = Tree(folder).digest()
    os.utime(folder / "a.txt", ns=(1, 1))
    assert before == Tree(folder).digest()
    (folder / "a.txt").write_bytes(b"2")
    assert before != Tree(folder).digest()


# --- what is refused -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["../evil.png", "a/../../evil.png", "/etc/evil.png", "..\\evil.png", "C:\\evil.png"])
def test_members_that_lead_out_of_the_folder(name: str, tmp_path: Path) -> None:
    (tmp_path / "z.zip").write_bytes(zipped({"fine.png": b"1", name: b"2"}))
    with pytest.raises(ArchiveError, match=r"z\.zip: member .*evil\.png' would lie outside of the folder") as error:
        Tree(tmp_path / "z.zip")
    assert "\n" not in str(error.value)
    (tmp_path / "outer.zip").write_bytes(zipped({"z.zip": zipped({name: b"2"})}))
    with pytest.raises(ArchiveError, match=r"outer\.zip/z\.zip: member"):
        Tree(tmp_path / "outer.zip")


def test_links_are_refused(tmp_path: Path) -> None:
    link = zipfile.ZipInfo("passwd.png")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "l.zip", "w") as zip_archive:
        zip_archive.writestr(link, "/etc/passwd")
    with pytest.raises(ArchiveError, match=r"l\.zip: member 'passwd\.png' is a link"):
        Tree(tmp_path / "l.zip")


def test_encrypted_archives_are_refused(tmp_path: Path) -> None:
    content = bytearray(zipped({"scan.png": b"1"}))
    for mark, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):  # APPNOTE 4.3: bit 0 of the flags of both headers
        content[content.index(mark) + flags] |= 1
    (tmp_path / "e.zip").write_bytes(content)
    with pytest.raises(ArchiveError, match=r"e\.zip: member 'scan\.png' is encrypted; unpack the archive yourself"):
        Tree(tmp_path / "e.zip")


@pytest.mark.parametrize("name", PACKED)
def test_damaged_archives_are_named(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(PACKED[name][: len(PACKED[name]) // 3])
    with pytest.raises(ArchiveError, match=rf"^{name} is not a readable archive: .*; fetch it again$"):
        Tree(tmp_path / name)
    (tmp_path / name).write_bytes(b"<html>403 Forbidden</html>")
    with pytest.raises(ArchiveError, match=rf"^{name} is not a readable archive: "):
        Tree(tmp_path / name)


def test_a_wrong_checksum_is_noticed(tmp_path: Path) -> None:
    content = PACKED["stored.zip"].replace(b"twotwo", b"twoTWO", 1)
    (tmp_path / "w.zip").write_bytes(content)
    with pytest.raises(ArchiveError, match=r"w\.zip/a/b/two\.txt cannot be read: Bad CRC-32"):
        contents(Tree(tmp_path / "w.zip"))


def test_archives_nested_without_end(tmp_path: Path) -> None:
    content = zipped({"x.png": b"1"})
    for _ in range(5):
        content = zipped({"deeper.zip": content})
    (tmp_path / "deep.zip").write_bytes(content)
    with pytest.raises(
        ArchiveError, match=r"deep\.zip/deeper\.zip/deeper\.zip: an archive in an archive in an archive"
    ):
        Tree(tmp_path / "deep.zip")


def test_a_member_too_large_to_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bench.datasets import _archives

    (tmp_path / "x.zip").write_bytes(zipped({"bomb.png": bytes(5 << 20)}))
    monkeypatch.setattr(_archives, "MAX_MEMBER_BYTES", 4 << 20)
    with pytest.raises(ArchiveError, match=r"x\.zip/bomb\.png has 5 MiB; files up to"):
        Tree(tmp_path / "x.zip").members[0].read()


def test_no_room_to_unpack(tmp_path: Path, room: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil

    (tmp_path / "o.zip").write_bytes(zipped({"i.zip": PACKED["x.zip"]}))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 10, 0))
    with pytest.raises(
        ArchiveError, match=r"o\.zip/i\.zip does not fit into .*; set MEDBENCH_CACHE to a folder with room"
    ):
        Tree(tmp_path / "o.zip")


def test_links_in_a_folder_are_followed_once(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "a.txt").write_bytes(b"1")
    (tmp_path / "s" / "loop").symlink_to(tmp_path / "s")
    assert [m.path for m in Tree(tmp_path / "s").members] == ["a.txt"]


def test_a_folder_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "s" / "shut").mkdir(parents=True)
    scandir = os.scandir

    def refusing(path):  # type: ignore[no-untyped-def]  # (the tests may run as root, who reads everything)
        if str(path).endswith("shut"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(ArchiveError, match=r"cannot read the folder .*shut: Permission denied"):
        Tree(tmp_path / "s")
