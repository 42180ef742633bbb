"""Archives of strangers: what would leave the folder, or fill the disk, is refused."""

import gzip
import io
import tarfile
from pathlib import Path

import pytest
from stand_ins import tar_bytes

from sfrik_jax.data.builders import archives
from sfrik_jax.errors import CorruptInputError, MissingInputError


def hostile(name="x", kind=tarfile.REGTYPE, link="", size=0) -> bytes:
    member = tarfile.TarInfo(name)
    member.type, member.linkname, member.size = kind, link, size
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("first"), io.BytesIO())
        tar.addfile(member, io.BytesIO(bytes(size)))
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (hostile("../evil"), "'../evil' leads out of the archive"),
        (hostile("a/../../evil"), "leads out of the archive"),
        (hostile("/evil"), "leads out of the archive"),
        (hostile("x", tarfile.SYMTYPE, "/etc/passwd"), "is a link or a device"),
        (hostile("x", tarfile.LNKTYPE, "../../evil"), "is a link or a device"),
        (hostile("x", tarfile.CHRTYPE), "is a link or a device"),
        (hostile("x", tarfile.FIFOTYPE), "is a link or a device"),
        (hostile("x", size=101), "claims 101 bytes"),
    ],
)
def test_a_member_that_is_not_allowed_refuses_the_archive(tmp_path, data, why):
    path = tmp_path / "in" / "a.tar"
    path.parent.mkdir()
    path.write_bytes(data)
    with pytest.raises(CorruptInputError, match=why):
        archives.unpack(path, ["first", "x", "evil"], tmp_path / "in" / "out", 100)
    found = {each.name for each in tmp_path.rglob("*") if each.is_file()}
    assert found <= {"a.tar", "first"}


def test_too_many_members_are_refused(tmp_path, monkeypatch):
    path = tmp_path / "a.tar"
    path.write_bytes(tar_bytes((str(k), b"") for k in range(4)))
    monkeypatch.setattr(archives, "MAX_MEMBERS", 3)
    with pytest.raises(CorruptInputError, match="comes after 3 others"):
        archives.unpack(path, ["0"], tmp_path, 100)


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_an_archive_that_is_cut_short_or_none_is_told(tmp_path, mode):
    files = [("d/a.bin", bytes(range(256)) * 40), ("b.bin", b"x" * 3000)]
    whole = tar_bytes(files, mode)
    path = tmp_path / "a.tar"
    path.write_bytes(whole)
    archives.unpack(path, ["a.bin", "b.bin"], tmp_path / "out", 20_000)
    for name, data in files:
        assert (tmp_path / "out" / Path(name).name).read_bytes() == data
    for data in (whole[: len(whole) // 2], b"<html>not found</html>" * 99, b""):
        path.write_bytes(data)
        with pytest.raises(CorruptInputError, match=str(path)):
            archives.unpack(path, ["a.bin", "b.bin"], tmp_path / "out", 20_000)


@pytest.mark.parametrize("mode", ["w", "w:gz"])
@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: data[:1024] + b"\1" + data[1025:],
        lambda data: data[:1024] + bytes(512) + data[1536:],
        lambda data: data[:1024],
        lambda data: data[:2048] + bytes(512),
    ],
    ids=["a header", "a header of zeros", "cut between members", "cut within its end"],
)
def test_an_archive_ends_where_it_says_so(tmp_path, mode, spoil):
    whole = tar_bytes([("a", b"1"), ("b", b"2")])
    path = tmp_path / "a.tar"
    for data in (whole, spoil(whole)):
        path.write_bytes(gzip.compress(data) if mode == "w:gz" else data)
        if data == whole:
            archives.unpack(path, ["a"], tmp_path / "out", 100)
        else:
            with pytest.raises(CorruptInputError, match=f"{path} is damaged or cut"):
                archives.unpack(path, ["a"], tmp_path / "out", 100)


def test_what_an_archive_lacks_is_told(tmp_path):
    path = tmp_path / "a.tar"
    path.write_bytes(tar_bytes([("a", b"1")]))
    with pytest.raises(CorruptInputError, match="lacks b"):
        archives.unpack(path, ["a", "b"], tmp_path / "out", 100)
    with pytest.raises(MissingInputError, match="cannot be read"):
        archives.unpack(tmp_path / "none.tar", ["a"], tmp_path / "out", 100)
