"""The zip files that PyTorch writes: where each member lies, and nothing hidden.

Stricter than a zip reader has to be: members are stored as they are, each is described
alike in front of it and in the directory, none overlaps another, and no room is left
for a second file in the same bytes. Format: PKWARE's APPNOTE.TXT 6.3.
"""

import os
import struct
import zlib
from dataclasses import dataclass
from typing import BinaryIO

from sfrik_jax.weights.stored import shown

MAX_DIRECTORY = 4 << 20  # bytes; that of ResNet-101 takes 37 kB
CHUNK = 1 << 20
END = struct.Struct("<4s4H2LH")
END64 = struct.Struct("<4sQ2H2L4Q")
LOCATOR64 = struct.Struct("<4sLQL")
CENTRAL = struct.Struct("<4s6H3L5H2L")
LOCAL = struct.Struct("<4s5H3L2H")
SIZES_FOLLOW, UTF8 = 0x8, 0x800  # flags; PyTorch sets both, and no other
MAX_EXTRA = 64  # bytes of an extra field; Python's zipfile writes 20
GAPS = (0, 12, 16, 20, 24)  # bytes of a data descriptor after a member


@dataclass(frozen=True)
class Member:
    """A member of the archive: its bytes are file[start : start + size]."""

    name: str
    start: int
    size: int
    crc: int


def members(file: BinaryIO) -> dict[str, Member]:
    """The members of a zip file by name.

    Raises:
      ValueError: the file is damaged, or no archive of plain stored members.
    """
    length = file.seek(0, os.SEEK_END)
    count, size, offset = _end(file, length)
    entries = _directory(_read(file, offset, size), count)
    found: dict[str, Member] = {}
    end = 0
    for entry, header_start in sorted(entries, key=lambda each: each[1]):
        name = shown(entry.name)
        if entry.name in found:
            raise ValueError(f"member {name} is there twice")
        start = _start(file, entry, header_start)
        if header_start - end not in (GAPS if found else (0,)):
            raise ValueError(f"member {name} overlaps another, or bytes hide before it")
        end = start + entry.size
        if end > offset:
            raise ValueError(f"member {name} reaches beyond its place")
        found[entry.name] = Member(entry.name, start, entry.size, entry.crc)
    if offset - end not in GAPS:
        raise ValueError("bytes hide before the directory")
    return found


def content(file: BinaryIO, member: Member) -> bytes:
    """A member's bytes.

    Raises:
      ValueError: they do not agree with their check sum.
    """
    check(file, member)
    return _read(file, member.start, member.size)


def check(file: BinaryIO, member: Member) -> None:
    """Raises ValueError where a member does not agree with its check sum."""
    crc, left = 0, member.size
    file.seek(member.start)
    while left:
        part = file.read(min(left, CHUNK))
        if not part:
            raise ValueError("it is cut short")
        crc, left = zlib.crc32(part, crc), left - len(part)
    if crc != member.crc:
        raise ValueError(f"member {shown(member.name)} fails its check sum")


def _end(file: BinaryIO, length: int) -> tuple[int, int, int]:
    """Number of entries, size and offset of the directory."""
    if length < END.size:
        raise ValueError("it is cut short")
    last = END.unpack(_read(file, length - END.size, END.size))
    signature, *disks, here, count, size, offset, comment = last
    if signature != b"PK\5\6" or comment:
        raise ValueError("no directory of members ends it")
    if any(disks) or here != count or size > MAX_DIRECTORY:
        raise ValueError("its directory of members is too large or split")
    rest = length - END.size - offset - size
    if rest == END64.size + LOCATOR64.size:
        data = _read(file, offset + size, rest)
        wide = END64.unpack_from(data)
        locator = LOCATOR64.unpack_from(data, END64.size)
        same = (wide[0], wide[4:]) == (b"PK\6\6", (0, 0, count, count, size, offset))
        if not same or locator != (b"PK\6\7", 0, offset + size, 1):
            raise ValueError("its two directories of members differ")
    elif rest:
        raise ValueError("its directory of members is not where it should be")
    return count, size, offset


def _directory(data: bytes, count: int) -> list[tuple[Member, int]]:
    """Each member, its start still unknown, with the offset of its local header."""
    entries, place = [], 0
    for _ in range(count):
        if place + CENTRAL.size > len(data):
            raise ValueError("its directory of members is damaged")
        fields = CENTRAL.unpack_from(data, place)
        signature, _, _, flags, method, _, _, crc, packed, size, *lengths = fields[:13]
        place += CENTRAL.size
        try:
            name = data[place : place + lengths[0]].decode()
        except UnicodeDecodeError as error:
            raise ValueError("the name of a member is not UTF-8") from error
        extra_length, comment_length = lengths[1:]
        extra = data[place + lengths[0] : place + lengths[0] + extra_length]
        place += sum(lengths)
        if signature != b"PK\1\2" or fields[13]:
            raise ValueError("its directory of members is damaged")
        if comment_length or not _plain(flags, extra):
            raise ValueError(f"member {shown(name)} is encrypted, or bytes hide by it")
        if method or packed != size:
            raise ValueError(
                f"member {shown(name)} is compressed; PyTorch stores plain"
            )
        entries.append((Member(name, 0, size, crc), fields[-1]))
    if place != len(data):
        raise ValueError("its directory of members is damaged")
    return entries


def _start(file: BinaryIO, entry: Member, header_start: int) -> int:
    """Where a member's bytes begin; its local header must say what the directory does.

    Sizes and check sum may stand behind the member; they are zero here then.
    """
    header = LOCAL.unpack(_read(file, header_start, LOCAL.size))
    signature, _, flags, method, _, _, crc, packed, size, name_length, extra = header
    name = _read(file, header_start + LOCAL.size, name_length)
    if not _plain(flags, _read(file, header_start + LOCAL.size + name_length, extra)):
        raise ValueError(
            f"member {shown(entry.name)} is encrypted, or bytes hide by it"
        )
    told = (crc, packed, size)
    later = flags & SIZES_FOLLOW and told == (0, 0, 0)
    same = later or told == (entry.crc, entry.size, entry.size)
    if signature != b"PK\3\4" or name != entry.name.encode() or method or not same:
        raise ValueError(
            f"member {shown(entry.name)} is another in its header than in the directory"
        )
    return header_start + LOCAL.size + name_length + extra


def _plain(flags: int, extra: bytes) -> bool:
    """Whether flags are known, and an extra field is short or PyTorch's filler."""
    filler = extra[:2] == b"FB" and not extra[4:].strip(b"Z")
    return not flags & ~(SIZES_FOLLOW | UTF8) and (filler or len(extra) <= MAX_EXTRA)


def _read(file: BinaryIO, start: int, size: int) -> bytes:
    file.seek(start)
    data = file.read(size)
    if len(data) != size:
        raise ValueError("it is cut short")
    return data
