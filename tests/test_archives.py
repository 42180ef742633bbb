"""Archives of strangers: what would leave the folder, or fill the disk, is refused."""

import contextlib
import gzip
import io
import tarfile
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch_form
from stand_ins import tar_bytes

from sfrik_jax import weights
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
def test_x4_a_member_that_is_not_allowed_refuses_the_archive(tmp_path, data, why):
    path = tmp_path / "in" / "a.tar"
    path.parent.mkdir()
    path.write_bytes(data)
    with pytest.raises(CorruptInputError, match=why):
        archives.unpack(path, ["first", "x", "evil"], tmp_path / "in" / "out", 100)
    found = {each.name for each in tmp_path.rglob("*") if each.is_file()}
    assert found <= {"a.tar", "first"}


def bombs() -> dict[str, tuple[bytes, str]]:
    """A few kilobytes of gzip by what they claim, and why they are refused."""
    zeros = tarfile.TarInfo("zeros")
    zeros.size = 10 << 30
    long = tarfile.TarInfo("././@LongLink")
    long.type, long.size = tarfile.GNUTYPE_LONGNAME, 10 << 30
    attributes = tarfile.TarInfo("pax")
    attributes.type, attributes.size = tarfile.XHDTYPE, 10 << 30
    holes = tarfile.TarInfo("holes")
    holes.type = tarfile.GNUTYPE_SPARSE
    first = tarfile.TarInfo("././@LongLink")
    first.type, first.size = tarfile.GNUTYPE_LONGNAME, 1
    chain = (first.tobuf() + b"x".ljust(512, b"\0")) * 50_000
    body = bytes(64 << 20)
    return {
        "10 GB of zeros": (
            zeros.tobuf(tarfile.GNU_FORMAT) + body,
            "claims 10737418240 bytes",
        ),
        "a name of 10 GB": (
            long.tobuf(tarfile.GNU_FORMAT) + body,
            "header claims 10737418240 bytes",
        ),
        "attributes of 10 GB": (
            attributes.tobuf(tarfile.GNU_FORMAT) + body,
            "header claims 1073741824",
        ),
        "a file with holes": (holes.tobuf() + body, "a file with holes"),
        "a name before a name": (chain, "recursion"),
    }


@pytest.mark.parametrize("what", bombs())
def test_x4_a_bomb_is_refused_from_its_header(tmp_path, what):
    """What is claimed is not read."""
    content, why = bombs()[what]
    path = tmp_path / "a.tar.gz"
    path.write_bytes(gzip.compress(tarfile.TarInfo("first").tobuf() + content, 1))
    assert path.stat().st_size < 1 << 20
    del content
    with (
        peak_of() as peak,
        pytest.raises(CorruptInputError, match=why) as caught,
    ):
        archives.unpack(path, ["zeros"], tmp_path / "out", 1 << 20)
    assert peak() < 16 << 20
    assert str(caught.value).isprintable() and len(str(caught.value)) < 500
    assert list((tmp_path / "out").iterdir()) == []


@contextlib.contextmanager
def peak_of() -> Iterator[Callable[[], int]]:
    """Bytes that Python allocated at most in the block."""
    tracemalloc.start()
    try:
        yield lambda: peak
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()


def many(kind: bytes, count: int) -> bytes:
    member = tarfile.TarInfo("d/x")
    member.type = kind
    return gzip.compress(member.tobuf() * count, 1)


@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.DIRTYPE])
def test_x4_many_members_are_not_kept_in_memory(tmp_path, monkeypatch, kind):
    """10,000 of them, all kept, would take 10 MB."""
    path = tmp_path / "a.tar.gz"
    path.write_bytes(many(kind, 20_000))
    monkeypatch.setattr(archives, "MAX_MEMBERS", 10_000)
    with (
        peak_of() as peak,
        pytest.raises(CorruptInputError, match="comes after 10000 others"),
    ):
        archives.unpack(path, ["x"], tmp_path / "out", 100)
    assert peak() < 2 << 20


@pytest.mark.slow  # 10 s: tarfile takes 50 us for a member
def test_x4_a_million_members_are_refused(tmp_path):
    path = tmp_path / "a.tar.gz"
    path.write_bytes(many(tarfile.DIRTYPE, 1_000_000))
    with pytest.raises(CorruptInputError, match="comes after 200000 others"):
        archives.unpack(path, ["x"], tmp_path / "out", 100)


def test_x4_too_many_members_are_refused(tmp_path, monkeypatch):
    path = tmp_path / "a.tar"
    path.write_bytes(tar_bytes((str(k), b"") for k in range(4)))
    monkeypatch.setattr(archives, "MAX_MEMBERS", 3)
    with pytest.raises(CorruptInputError, match="comes after 3 others"):
        archives.unpack(path, ["0"], tmp_path, 100)


@pytest.mark.parametrize("name", ["../evil", "/evil", "net/data/../../evil"])
def test_x4_a_member_of_a_zip_is_never_written(tmp_path, name):
    """Members of PyTorch's files are read in their place; none has a file."""
    content = torch_form.archive(
        [("net/data.pkl", b"\x80\x02}."), (name, b"evil"), ("net/version", b"3\n")]
    )
    path = tmp_path / "in" / "net.pth"
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(CorruptInputError, match="holds no state dict"):
        weights.open_file(path)
    assert [each.name for each in tmp_path.rglob("*")] == ["in", "net.pth"]
    assert not Path("/evil").exists()


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_x4_an_archive_that_is_cut_short_or_none_is_told(tmp_path, mode):
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
def test_x4_an_archive_ends_where_it_says_so(tmp_path, mode, spoil):
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
