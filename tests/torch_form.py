"""PyTorch's zip files, byte by byte, without PyTorch: sound ones and hostile ones.

`archive` writes what `torch.save` of version 2.13 writes: members stored plain, their
sizes behind them, a field that aligns them to 64 bytes, the directory twice.
"""

import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

STORAGES = {
    "float64": "DoubleStorage",
    "float32": "FloatStorage",
    "float16": "HalfStorage",
    "bfloat16": "BFloat16Storage",
    "int64": "LongStorage",
}
PROTO, STOP = b"\x80\x02", b"."
ALIGNMENT = 64


def text(value: str) -> bytes:
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def number(value: int) -> bytes:
    if 0 <= value < 256:
        return b"K" + bytes([value])
    if -(1 << 31) <= value < 1 << 31:
        return b"J" + struct.pack("<i", value)
    data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def numbers(values: tuple[int, ...]) -> bytes:
    return group(*map(number, values))


def group(*parts: bytes) -> bytes:
    return b"(" + b"".join(parts) + b"t"


def named(name: str) -> bytes:
    module, _, attribute = name.rpartition(".")
    return f"c{module}\n{attribute}\n".encode()


def storage(key: str, dtype: str, count: int) -> bytes:
    kind = named(f"torch.{STORAGES[dtype]}")
    parts = (text("storage"), kind, text(key), text("cpu"), number(count))
    return group(*parts) + b"Q"


def tensor(
    source: bytes, shape, strides, offset: int = 0, metadata: bytes = b""
) -> bytes:
    """The call that makes a tensor of a storage."""
    hooks = named("collections.OrderedDict") + b")R"
    function = named("torch._utils._rebuild_tensor_v2")
    arguments = (source, number(offset), numbers(shape), numbers(strides), b"\x89")
    return function + group(*arguments, hooks, metadata) + b"R"


def mapping(items: Mapping[str, bytes]) -> bytes:
    """An OrderedDict with the attribute that PyTorch gives to state dicts."""
    body = b"".join(text(name) + value for name, value in items.items())
    empty = named("collections.OrderedDict") + b")R"
    metadata = b"}" + text("_metadata") + empty + b"s"
    return empty + b"(" + body + b"u" + metadata + b"b"


def call(function: bytes, *arguments: bytes) -> bytes:
    return function + group(*arguments) + b"R"


def live_payloads(place: Path) -> dict[str, bytes]:
    """Pickles that make the file `place` when Python's own unpickler reads them.

    By the name of what is refused of each.
    """
    shell, code = text(f"touch {place}"), text(f"open({str(place)!r}, 'w').close()")
    system, module = named("posix.system"), named("importlib.import_module")
    words = b"(" + text("touch") + text(str(place)) + b"l"
    inner = PROTO + call(system, shell) + STOP
    nested = b"C" + bytes([len(inner)]) + inner
    of_os = call(module, text("os"))
    got = call(named("builtins.getattr"), of_os, text("system"))
    attribute = call(named("operator.attrgetter"), text("system"))
    partial = call(named("functools.partial"), system, shell)
    return {
        "posix.system": call(system, shell),
        "builtins.eval": call(named("builtins.eval"), code),
        "builtins.exec": call(named("builtins.exec"), code),
        "subprocess.check_call": call(named("subprocess.check_call"), words),
        "io.open": call(named("io.open"), text(str(place)), text("w")),
        "functools.partial": call(partial),
        "operator.attrgetter": call(call(attribute, of_os), shell),
        "builtins.getattr": call(got, shell),
        "pickle.loads": call(named("pickle.loads"), nested),
        "os.system": b"(" + shell + b"ios\nsystem\n",
        "posix.system by OBJ": b"(" + system + shell + b"o",
        "posix.system by name": b"\x8c\x05posix\x8c\x06system\x93"
        + group(shell)
        + b"R",
    }


def strides_of(value: np.ndarray) -> tuple[int, ...]:
    return tuple(stride // value.itemsize for stride in value.strides)


def described(state: Mapping[str, np.ndarray]) -> tuple[bytes, dict[str, bytes]]:
    """A state dict as instructions, and the members that hold its numbers."""
    items, members = {}, {}
    for index, (name, value) in enumerate(state.items()):
        # The memory as it lies, whatever the order of its axes.
        flat = value.ravel(order="K")
        members[f"data/{index}"] = flat.tobytes()
        source = storage(str(index), value.dtype.name, value.size)
        items[name] = tensor(source, value.shape, strides_of(value))
    return mapping(items), members


def saved(state: Mapping[str, np.ndarray], wrap: str = "") -> bytes:
    """The bytes of `torch.save(state)`, or of {wrap: state, "epoch": 3}."""
    instructions, members = described(state)
    if wrap:
        entry = text(wrap) + instructions + text("epoch") + number(3)
        instructions = b"}(" + entry + b"u"
    return file_of(PROTO + instructions + STOP, members)


def file_of(pickle: bytes, members: Mapping[str, bytes] | None = None) -> bytes:
    """A PyTorch file with a given data.pkl."""
    parts: dict[str, bytes] = {"data.pkl": pickle, "byteorder": b"little"}
    parts |= {**(members or {}), "version": b"3\n"}
    return archive([(f"net/{name}", data) for name, data in parts.items()])


def archive(members: list[tuple[str, bytes]], **changes: Any) -> bytes:
    """A zip file of stored members.

    Args:
      changes: of the last member's headers, for hostile files: `local_name`, `method`,
        `local_size`, `size`, `crc`, `offset`, `flags`, `local_flags`,
        `central_extra`, `local_extra`, `comment`, `alignment`; and `count`, of the
        directory.
    """
    out, directory = bytearray(), b""
    for position, (name, data) in enumerate(members):
        last = changes if position == len(members) - 1 else {}
        title, local = name.encode(), last.get("local_name", name).encode()
        crc, size = last.get("crc", zlib.crc32(data)), last.get("size", len(data))
        method, told = last.get("method", 0), last.get("local_size", 0)
        start = len(out)
        pad = -(start + 30 + len(local) + 4) % last.get("alignment", ALIGNMENT)
        flags, local_flags = last.get("flags", 0x808), last.get("local_flags", 0x808)
        extra, comment = last.get("central_extra", b""), last.get("comment", b"")
        sizes = struct.pack("<LLL", 0, told, told)
        version = struct.pack("<4s5H", b"PK\3\4", 0, local_flags, method, 0, 0)
        field = struct.pack("<2sH", b"FB", pad) + b"Z" * pad
        field = last.get("local_extra", field)
        lengths = struct.pack("<HH", len(local), len(field))
        out += version + sizes + lengths + local + field + data
        out += struct.pack("<4sLLL", b"PK\7\x08", crc, len(data), len(data))
        directory += struct.pack("<4s6H", b"PK\1\2", 0, 0, flags, method, 0, 0)
        directory += struct.pack("<LLL", crc, size, size)
        directory += struct.pack("<5H", len(title), len(extra), len(comment), 0, 0)
        directory += struct.pack("<LL", 0, last.get("offset", start))
        directory += title + extra + comment
    count, place, size = changes.get("count", len(members)), len(out), len(directory)
    end64 = struct.pack("<4sQHHLL", b"PK\6\6", 44, 0, 0x31E, 0, 0)
    end64 += struct.pack("<QQQQ", count, count, size, place)
    end64 += struct.pack("<4sLQL", b"PK\6\7", 0, place + size, 1)
    end = struct.pack("<4sHHHHLLH", b"PK\5\6", 0, 0, count, count, size, place, 0)
    return bytes(out + directory + end64 + end)
