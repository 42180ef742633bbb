"""State dicts of PyTorch, `.pth` or `.pt`, read without PyTorch.

A zip file holds `data.pkl`, a pickle that describes the tensors, and `data/0`,
`data/1`, …, their numbers. `pickled` reads the pickle and runs nothing of it.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from sfrik_jax.errors import CorruptInputError
from sfrik_jax.weights import archives
from sfrik_jax.weights.pickled import Refused, unpickle
from sfrik_jax.weights.stored import BFLOAT16, MAX_AXES, StoredTensor, reason, shown

SIGNATURE = b"PK\3\4"
MAX_BYTES = 4 << 30  # ResNet-50x2 takes 0.4 GB
MAX_PICKLE = 1 << 19  # bytes; ResNet-101 takes 77 kB
WRAPPERS = ("state_dict", "model", "backbone")
DTYPES = {
    "Double": np.dtype("<f8"),
    "Float": np.dtype("<f4"),
    "Half": np.dtype("<f2"),
    "BFloat16": BFLOAT16,
    "Long": np.dtype("<i8"),
    "Int": np.dtype("<i4"),
    "Short": np.dtype("<i2"),
    "Char": np.dtype("i1"),
    "Byte": np.dtype("u1"),
    "Bool": np.dtype("?"),
}
ADVICE = (
    "nothing of the file was run; of a training checkpoint take the file of the "
    "backbone alone, with bare names, such as resnet50.pth"
)


@dataclass(frozen=True)
class StorageType:
    """What a global such as torch.FloatStorage stands for."""

    dtype: np.dtype


@dataclass(frozen=True)
class Storage:
    """A row of numbers: `count` of them from byte `start` of the file."""

    dtype: np.dtype
    start: int
    count: int


STORAGE_TYPES = {
    f"torch.{name}Storage": StorageType(dtype) for name, dtype in DTYPES.items()
}


def state_dict(path: Path, file: BinaryIO) -> dict[str, StoredTensor]:
    """The tensors of a PyTorch file by name, not read yet.

    A dictionary around them under "state_dict", "model" or "backbone" is taken off.

    Raises:
      CorruptInputError: the file is damaged, asks for code, or holds something else.
    """
    try:
        found = _unpickled(file)
    except Refused as refusal:
        raise CorruptInputError(
            f"SFRIK-UNSAFE refused {refusal} in {path}: {ADVICE}"
        ) from refusal
    except ValueError as error:
        raise CorruptInputError(
            f"{path} is no sound PyTorch file: {reason(error)}"
        ) from error
    return _tensors(path, found)


def legacy_error(path: Path) -> CorruptInputError:
    """What to say of the format that PyTorch wrote before version 1.6."""
    return CorruptInputError(
        f"{path} is in PyTorch's old format, a bare pickle; with PyTorch: "
        "torch.save(torch.load(FILE, weights_only=True), NEW_FILE)"
    )


def _unpickled(file: BinaryIO) -> Any:
    members = archives.members(file)
    if sum(member.size for member in members.values()) > MAX_BYTES:
        raise ValueError(f"it holds more than {MAX_BYTES >> 30} GiB")
    pickles = [name for name in members if name.split("/")[-1] == "data.pkl"]
    if len(pickles) != 1 or pickles[0].count("/") != 1:
        raise ValueError(
            f"it holds {len(pickles)} members data.pkl, not one at its root"
        )
    root = pickles[0].removesuffix("data.pkl")
    order = members.get(f"{root}byteorder")
    if order is not None and (
        order.size > len(b"little") or archives.content(file, order) != b"little"
    ):
        raise ValueError("its numbers are not little-endian")
    if members[pickles[0]].size > MAX_PICKLE:
        raise ValueError(f"its data.pkl is longer than {MAX_PICKLE} bytes")
    checked: dict[str, archives.Member] = {}

    def storage(identifier: Any) -> Storage:
        name, kind = _storage_name(identifier)
        member = members.get(f"{root}data/{name}")
        if member is None:
            raise ValueError(f"storage {name} is not there")
        if identifier[4] * kind.dtype.itemsize != member.size:
            raise ValueError(f"storage {name} is not as long as it is said to be")
        if name not in checked:
            archives.check(file, member)
            checked[name] = member
        return Storage(kind.dtype, member.start, identifier[4])

    return unpickle(
        archives.content(file, members[pickles[0]]),
        functions=FUNCTIONS,
        values=STORAGE_TYPES,
        persistent=storage,
    )


def _storage_name(identifier: Any) -> tuple[str, StorageType]:
    """The checked parts of ("storage", type, name, device, count)."""
    kinds = (str, StorageType, str, str, int)
    if type(identifier) is not tuple or tuple(map(type, identifier)) != kinds:
        raise ValueError("a persistent identifier is not that of a storage")
    label, kind, name, _, _ = identifier
    plain = name.isascii() and name.isdigit() and len(name) < 10
    if label != "storage" or not plain:
        raise ValueError("a persistent identifier is not that of a storage")
    return name, kind


def _ordered_dict() -> dict[Any, Any]:
    return {}


def _tensor(
    storage: Any,
    offset: Any,
    shape: Any,
    strides: Any,
    requires_grad: Any,
    hooks: Any,
    metadata: Any = None,
) -> StoredTensor:
    """A view of a storage, all of it inside; offset and strides in elements."""
    # {"neg": True} and {"conj": True} say that the numbers mean others.
    if metadata is not None and metadata != {}:
        raise ValueError(
            "a tensor is a negative or conjugate view; save it after resolve_neg()"
        )
    if type(storage) is not Storage or type(shape) is not tuple:
        raise ValueError("a tensor is not made of a storage and a shape")
    if type(strides) is not tuple or not len(strides) == len(shape) <= MAX_AXES:
        raise ValueError("a tensor's strides do not fit its shape")
    if not all(type(n) is int and 0 <= n < 1 << 63 for n in (offset, *shape, *strides)):
        raise ValueError("a tensor's offset, shape or stride is impossible")
    itemsize = storage.dtype.itemsize
    start = storage.start + offset * itemsize
    tensor = StoredTensor(storage.dtype, shape, strides, start)
    # The first bounds what is read, the second what is made of it (strides of 0).
    fits = offset + tensor.span <= storage.count
    if not fits or tensor.nbytes > storage.count * itemsize:
        raise ValueError("a tensor reaches beyond its storage")
    return tensor


def _parameter(data: Any, requires_grad: Any, hooks: Any) -> StoredTensor:
    if type(data) is not StoredTensor:
        raise ValueError("a parameter is made of what is no tensor")
    return data


FUNCTIONS = {
    "collections.OrderedDict": _ordered_dict,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
}


def _tensors(path: Path, found: Any) -> dict[str, StoredTensor]:
    if type(found) is dict:
        inner = [found[key] for key in WRAPPERS if type(found.get(key)) is dict]
        found = inner[0] if inner else found
    if type(found) is not dict or not found:
        raise CorruptInputError(f"{path} holds no state dict")
    return {_checked_name(path, key, value): value for key, value in found.items()}


def _checked_name(path: Path, key: Any, value: Any) -> str:
    if type(key) is not str or type(value) is not StoredTensor:
        raise CorruptInputError(
            f"{path} holds no state dict: its entry {shown(str(key))} is no tensor"
        )
    return key
