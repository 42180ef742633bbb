"""Reading tar archives of strangers: nothing is unpacked to a name that they choose.

Only plain files are taken. A member that leads out of the archive, is a link or a
device, or is larger than any picture is refused, and so are archives cut short.
"""

import contextlib
import lzma
import shutil
import tarfile
import zlib
from collections.abc import Collection, Iterator
from pathlib import Path, PurePosixPath
from typing import IO

from sfrik_jax.errors import CorruptInputError, MissingInputError

MAX_MEMBERS = 200_000  # of one archive; ImageNet's largest has 50,000
MAX_HEADER = 1 << 16  # bytes of a name or of attributes that stand before a member
_END = bytes(2 * tarfile.BLOCKSIZE)
# tarfile calls itself for each header that stands before another.
_DAMAGE = (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, RecursionError)
_HEADERS = (
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
)


class _Member(tarfile.TarInfo):
    """A member whose headers are short: tarfile reads each into memory at one go.

    Ten megabytes of gzip can claim, and hold, an attribute of ten gigabytes, or the
    map of a file with as many holes.
    """

    def _proc_member(self, tar: tarfile.TarFile) -> tarfile.TarInfo:
        if self.type in _HEADERS and not 0 <= self.size <= MAX_HEADER:
            raise tarfile.ReadError(f"a header claims {self.size} bytes")
        if self.type == tarfile.GNUTYPE_SPARSE:
            self._proc_gnusparse_10()
        return super()._proc_member(tar)  # pyright: ignore

    def _proc_gnusparse_10(self, *_) -> None:
        raise tarfile.ReadError("it holds a file with holes")


@contextlib.contextmanager
def opened(path: Path, file: IO[bytes] | None = None) -> Iterator[tarfile.TarFile]:
    """A tar archive, compressed or not.

    Args:
      path: what a message calls it, and the file to open, unless `file` is given.

    Raises:
      MissingInputError: it cannot be read.
      CorruptInputError: also from the block that reads it: no archive, or damaged.
    """
    try:
        with tarfile.open(
            path if file is None else None, "r:*", fileobj=file, tarinfo=_Member
        ) as tar:
            yield tar
    except (*_DAMAGE, OSError) as error:
        # gzip's own errors are OSErrors without a number.
        if not isinstance(error, OSError) or error.errno is None:
            # tarfile tells what each of its readers says, a line for one.
            why = "; ".join(str(error).splitlines())[:200]
            raise CorruptInputError(
                f"{path} is no whole archive ({why}); fetch it again"
            ) from error
        if error.filename == str(path):
            raise MissingInputError(
                f"{path} cannot be read ({error.strerror})"
            ) from error
        raise


def files(
    tar: tarfile.TarFile, path: Path, limit: int
) -> Iterator[tuple[str, tarfile.TarInfo]]:
    """Name without folders, and member, of each plain file in the archive's order.

    Args:
      path: what a message calls the archive. limit: bytes that a file may have.

    Raises:
      CorruptInputError: a member that is not allowed, or no end after the last one.
    """
    for number, member in enumerate(tar):
        parts = PurePosixPath(member.name).parts
        if number >= MAX_MEMBERS:
            raise _refused(path, member, f"comes after {MAX_MEMBERS} others")
        if member.name.startswith("/") or ".." in parts:
            raise _refused(path, member, "leads out of the archive")
        # tarfile keeps all members; a million of them take a gigabyte.
        getattr(tar, "members", []).clear()
        if member.isdir():
            continue
        if not member.isfile():
            raise _refused(path, member, "is a link or a device")
        if member.size > limit:
            raise _refused(path, member, f"claims {member.size} bytes")
        yield parts[-1] if parts else "", member
    # tarfile takes a damaged header, and a cut between two members, for the end.
    assert tar.fileobj is not None, "it is open"
    tar.fileobj.seek(tar.offset)
    if tar.fileobj.read(len(_END)) != _END:
        raise CorruptInputError(
            f"{path} is damaged or cut short at byte {tar.offset}; fetch it again"
        )


def read(tar: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> bytes:
    """All bytes of a file. Errors: CorruptInputError when it is cut short."""
    with _file(tar, member) as file:
        data = file.read()
    if len(data) != member.size:
        raise CorruptInputError(
            f"{path} ends within {member.name!r}; fetch the archive again"
        )
    return data


def unpack(path: Path, names: Collection[str], folder: Path, limit: int) -> None:
    """Copies the files with these names into a folder, without the archive's folders.

    Raises:
      CorruptInputError: one is not there, or see `files`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    missing = set(names)
    with opened(path) as tar:
        for name, member in files(tar, path, limit):
            if name in missing:
                missing.remove(name)
                with _file(tar, member) as source, (folder / name).open("wb") as copy:
                    shutil.copyfileobj(source, copy, 1 << 20)
    if missing:
        raise CorruptInputError(f"{path} lacks {sorted(missing)[0]}; fetch it again")


def _file(tar: tarfile.TarFile, member: tarfile.TarInfo) -> IO[bytes]:
    file = tar.extractfile(member)
    assert file is not None, "only plain files come here"
    return file


def _refused(path: Path, member: tarfile.TarInfo, why: str) -> CorruptInputError:
    return CorruptInputError(
        f"{path} is refused: its member {member.name[:80]!r} {why}; get the archive "
        "from its publisher"
    )
