"""Safetensors files: each rule of the format that a file may break (catalogue X2)."""

import io
import json
import math
import struct
import tracemalloc

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors
from faults.damaged_files import (
    ABOUT,
    ARCH,
    STEM,
    WIDTH,
    small_state,
    small_variables,
)
from safetensors.numpy import save

from sfrik_jax import models, weights
from sfrik_jax.errors import CorruptInputError
from sfrik_jax.weights import names
from sfrik_jax.weights.files import IMAGENET
from sfrik_jax.weights.safetensors_files import MAX_HEADER
from sfrik_jax.weights.stored import StoredTensor


def state():
    return {name: value.copy() for name, value in small_state().items()}


def parts():
    """Header and data of a sound file."""
    content = save(state())
    (size,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + size]), content[8 + size :]


def joined(header, data):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def changed(name="bn1.bias", **entry):
    header, data = parts()
    header[name] |= entry
    return joined(header, data)


def without(name):
    header, data = parts()
    del header[name]
    return joined(header, data)


def twice():
    header, data = parts()
    text = json.dumps(header)
    return joined((text[:-1] + ', "bn1.bias": {}}').encode(), data)


def with_metadata(value):
    header, data = parts()
    return joined({"__metadata__": value} | header, data)


def of_length(size):
    return struct.pack("<Q", size) + b"{}" + bytes(16)


def offsets(name="bn1.bias"):
    return parts()[0][name]["data_offsets"]


def check(tmp_path, content):
    path = tmp_path / "net.safetensors"
    path.write_bytes(content)
    return weights.open_file(path)


def test_a_file_without_description_is_recognised(tmp_path):
    found = check(tmp_path, save(state()))
    assert (found.arch, found.width, found.stem) == (ARCH, WIDTH, STEM)
    assert (found.preprocessing, found.about) == (IMAGENET, {})
    chex.assert_trees_all_equal(found.variables, small_variables())


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_other_floats_become_float32(tmp_path, dtype):
    kind = jnp.dtype(dtype)
    label = {"float16": "F16", "bfloat16": "BF16", "float64": "F64"}[dtype]
    header, data = {}, b""
    for name, value in state().items():
        if value.dtype == np.float32:
            raw = value.astype(kind).tobytes()
            place = [len(data), len(data) + len(raw)]
            shape = list(value.shape)
            header[name] = {"dtype": label, "shape": shape, "data_offsets": place}
            data += raw
    found = check(tmp_path, joined(header, data))
    want = jax.tree.map(
        lambda x: np.asarray(x).astype(kind).astype(np.float32), small_variables()
    )
    chex.assert_trees_all_equal(found.variables, want)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (lambda: b"{", "shorter than the length of a header"),
        (lambda: of_length(1 << 40), "is longer than the file"),
        (lambda: of_length((1 << 64) - 1), "is longer than the file"),
        (lambda: joined(b"[]", b""), "does not start with {"),
        (lambda: joined(b'{"\xff": 1}', b""), "not UTF-8"),
        (lambda: joined(b'{"a": ', b""), "not JSON"),
        (lambda: joined(b'{"a": ' + b"[" * 10**5, b""), "nests too deep"),
        (lambda: joined(b'{"a": ' + b"9" * 5000 + b"}", b""), "no sound safetensors"),
        (twice, "names bn1.bias twice"),
        (lambda: with_metadata([]), "__metadata__ holds something else"),
        (lambda: with_metadata({"a": 1}), "__metadata__ holds something else"),
        (lambda: changed(dtype=None), "unknown dtype"),
        (lambda: changed(dtype="F128"), "unknown dtype"),
        (lambda: changed(dtype=["F32"]), "unknown dtype"),
        (lambda: changed(dtype="F64"), "takes 32 bytes, not 16"),
        (lambda: changed(shape=[5]), "takes 20 bytes, not 16"),
        (lambda: changed(shape=[-4]), "impossible shape"),
        (lambda: changed(shape=[4.0]), "impossible shape"),
        (lambda: changed(shape=[True, 4]), "impossible shape"),
        (lambda: changed(shape=4), "impossible shape"),
        (lambda: changed(shape=[1 << 62, 1 << 62]), "impossible shape"),
        (lambda: changed(shape=[1] * 100), "impossible shape"),
        (lambda: changed(data_offsets=[-16, 0]), "impossible data_offsets"),
        (lambda: changed(data_offsets=[0]), "impossible data_offsets"),
        (lambda: changed(data_offsets=[16, 0]), "takes 16 bytes, not -16"),
        (lambda: changed(data_offsets=[1 << 63, 0]), "impossible data_offsets"),
        (lambda: changed(data_offsets=[o + 4 for o in offsets()]), "a hole|overlaps"),
        (lambda: changed(data_offsets=[0, 16]), "overlaps another|a hole"),
        (lambda: without("bn1.bias"), "follows a hole"),
        (lambda: joined(parts()[0], parts()[1][:-1]), "bytes of tensors, not"),
        (lambda: joined(parts()[0], parts()[1] + b"x"), "bytes of tensors, not"),
    ],
)
def test_x2_a_broken_rule_is_named(tmp_path, content, words):
    with pytest.raises(CorruptInputError, match=words) as caught:
        check(tmp_path, content())
    assert str(caught.value).isprintable() and len(str(caught.value)) < 400
    # The format's own library agrees.
    with pytest.raises(safetensors.SafetensorError):
        safetensors.deserialize(content())


@pytest.mark.parametrize("entry", [{"extra": 1}, []])
def test_x2_an_entry_of_another_form_is_refused(tmp_path, entry):
    header, data = parts()
    header["bn1.bias"] = {**header["bn1.bias"], **entry} if entry else entry
    with pytest.raises(CorruptInputError, match=r"bn1\.bias is not told by dtype"):
        check(tmp_path, joined(header, data))


@pytest.mark.parametrize("size", [100_000_001, (1 << 30) - 8])
def test_x2_a_header_of_more_than_100_mb_is_refused_unread(tmp_path, size):
    path = tmp_path / "net.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", size) + b"{")
        file.truncate(8 + size)  # with holes: it takes no room
    tracemalloc.start()
    with pytest.raises(CorruptInputError, match=f"header of {size} bytes is longer"):
        weights.open_file(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


def test_x2_a_header_that_is_longer_than_any_backbones_is_refused(tmp_path):
    header, data = parts()
    padded = json.dumps(header).encode().ljust(MAX_HEADER + 1)
    with pytest.raises(CorruptInputError, match="longer than 1000000"):
        check(tmp_path, joined(padded, data))
    check(tmp_path, joined(padded[:-1], data))


@pytest.mark.parametrize(
    ("about", "words"),
    [
        ({"arch": ["resnet14"]}, "arch is none of"),
        ({"arch": "resnet19"}, "arch is none of"),
        ({"width": 1 << 20}, "width is no number in"),
        ({"width": True}, "width is no number in"),
        ({"stem": "tiny"}, "stem is neither"),
        ({"preprocessing": {**IMAGENET, "resize": "256"}}, "resize is no size"),
        ({"preprocessing": {**IMAGENET, "mean": [0, 0]}}, "mean is not three"),
        ({"preprocessing": {**IMAGENET, "std": [0, 1, 1]}}, "std is not three"),
        ({"preprocessing": {**IMAGENET, "std": None}}, "damaged"),
        ({"preprocessing": {**IMAGENET, "mean": [10**400] * 3}}, "mean is not three"),
        ({"preprocessing": {**IMAGENET, "mean": [math.nan] * 3}}, "mean is not three"),
        ({"preprocessing": {**IMAGENET, "std": [5e-324] * 3}}, "std is not three"),
        ({"preprocessing": {**IMAGENET, "std": [1e39] * 3}}, "std is not three"),
        ({"x" * 10**5: 0, "width": 0}, "width is no number in"),
        ({"preprocessing": {}}, "damaged"),
    ],
)
def test_x2_a_description_that_makes_no_sense_is_refused(tmp_path, about, words):
    content = save(state(), metadata={"sfrik_jax": json.dumps(ABOUT | about)})
    with pytest.raises(CorruptInputError, match=words):
        check(tmp_path, content)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s.pop("conv1.weight"), "no ResNet: there is no conv1.weight"),
        (lambda s: s.update({"conv1.weight": np.zeros((4, 3, 5, 5))}), "no ResNet"),
        (lambda s: s.update({"conv1.weight": np.zeros((0, 3, 3, 3))}), "no ResNet"),
        (lambda s: s.pop("layer3.0.conv3.weight"), "missing layer3.0.conv3.weight"),
        (lambda s: s.update({"layer1.7.conv1.weight": np.zeros(1)}), "it is none of"),
        (lambda s: s.update({"a\nb" * 99: np.zeros(1)}), "unexpected 'a.nba.nb"),
        (
            lambda s: s.update({"x.num_batches_tracked": np.zeros(1)}),
            "unexpected x.num",
        ),
        (lambda s: s.update({"bn1.bias": np.zeros(5)}), r"shape \(5,\), not \(4,\)"),
        (lambda s: s.update({"module.bn1.bias": np.zeros(4)}), "is there twice"),
        (
            lambda s: s.update({f"x{i}": np.zeros(1) for i in range(30)}),
            "unexpected x9; and 20 more|and 20 more",
        ),
    ],
)
def test_what_is_not_the_network_is_named(tmp_path, change, words):
    tensors = state()
    change(tensors)
    with pytest.raises(CorruptInputError, match=words) as caught:
        check(tmp_path, save(tensors))
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("width", [4097, 1 << 31, 1 << 62])
def test_a_width_that_no_network_has_is_refused(tmp_path, width):
    empty = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    header = {
        f"layer{stage}.{block}.conv{conv}.weight": empty
        for stage in range(1, 5)
        for block in range(2)
        for conv in (1, 2)
    }
    header["conv1.weight"] = {**empty, "shape": [width, 0, 7, 7]}
    with pytest.raises(CorruptInputError, match=r"no ResNet.* 1 … 4096 channels"):
        check(tmp_path, joined(header, b""))


def test_a_negative_variance_is_refused(tmp_path):
    tensors = state()
    tensors["layer2.0.bn1.running_var"] = -tensors["layer2.0.bn1.running_var"]
    words = r"layer2\.0\.bn1\.running_var holds a negative variance"
    with pytest.raises(CorruptInputError, match=words):
        check(tmp_path, save(tensors))
    with pytest.raises(CorruptInputError, match=words):
        weights.from_torch(tensors, ARCH, width=WIDTH, stem=STEM)


@pytest.mark.parametrize("size", [0, 3, 8, 1020])
def test_x2_a_tensor_that_is_not_all_there_is_refused(size):
    tensor = StoredTensor(np.dtype("<f4"), (4, 8, 8), (64, 1, 8), 0)
    with pytest.raises(CorruptInputError, match=r"conv1\.weight is cut short"):
        tensor.read(io.BytesIO(bytes(size)), "conv1.weight")
    np.testing.assert_array_equal(
        tensor.read(io.BytesIO(bytes(1024)), "conv1.weight"), np.zeros((4, 8, 8))
    )


def test_the_fingerprint_is_of_the_weights_alone(tmp_path):
    want = weights.fingerprint(small_variables(), ARCH)
    first = tmp_path / "one.safetensors"
    weights.save(
        first, small_variables(), ABOUT | {"note": "another file, the same weights"}
    )
    assert weights.fingerprint(weights.load(first)[1], ARCH) == want
    counted = state()
    counted["bn1.num_batches_tracked"] += 7
    found = check(tmp_path, save(counted))
    assert weights.fingerprint(found.variables, ARCH) == want
    other = jax.tree.map(lambda x: x, small_variables())
    bias = other["params"]["bn1"]["bias"]
    other["params"]["bn1"]["bias"] = bias.at[0].add(1e-6)
    assert weights.fingerprint(other, ARCH) != want


def test_twice_the_width_of_resnet50_is_resnet50x2():
    shapes = {}
    for width in (64, 128):
        model = models.BACKBONES["resnet50"](width=width)
        init = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
        zeros = jax.tree.map(lambda x: np.broadcast_to(np.zeros(()), x.shape), init)
        flat = jax.tree_util.tree_flatten_with_path(zeros)[0]
        shapes[width] = {
            weights.torch_name(tuple(k.key for k in path)): (
                tuple(leaf.shape[i] for i in (3, 2, 0, 1))
                if leaf.ndim == 4
                else leaf.shape
            )
            for path, leaf in flat
        }
    assert names.detect(shapes[64]) == ("resnet50", 64, "imagenet")
    assert names.detect(shapes[128]) == ("resnet50x2", 64, "imagenet")
