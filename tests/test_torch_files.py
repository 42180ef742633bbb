"""PyTorch's files are read without PyTorch, and a hostile one never runs code."""

import io
import json
import logging
import os
import pickle
import struct
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch_form
from conftest import REFERENCE
from faults.damaged_files import ARCH, STEM, WIDTH, small_variables
from filled import draw
from stand_ins import tar_bytes
from torch_form import (
    PROTO,
    STOP,
    call,
    group,
    live_payloads,
    named,
    number,
    tensor,
    text,
)

from sfrik_jax import weights
from sfrik_jax.errors import CorruptInputError
from sfrik_jax.weights import names
from sfrik_jax.weights.files import IMAGENET

ROOT = Path(__file__).parents[1]
NAMES = json.loads((REFERENCE / "torch_state_dict_names.json").read_text())


def small_state(dtype="float32"):
    state = weights.to_torch(small_variables(), ARCH)
    kind = jnp.dtype(dtype)
    return {
        name: value.astype(kind) if value.dtype == np.float32 else value
        for name, value in state.items()
    }


@pytest.fixture
def load(tmp_path):
    """Writes bytes as a file and opens it."""

    def run(content, name="net.pth"):
        path = tmp_path / name
        path.write_bytes(content)
        try:
            return weights.open_file(path)
        finally:
            path.unlink()

    return run


# --- Sound files --------------------------------------------------------------------


@pytest.mark.parametrize("wrap", ["", "state_dict", "model", "backbone"])
def test_a_state_dict_comes_back_with_its_architecture(load, wrap):
    found = load(torch_form.saved(small_state(), wrap))
    assert (found.arch, found.width, found.stem) == (ARCH, WIDTH, STEM)
    chex.assert_trees_all_equal(found.variables, small_variables())
    assert found.preprocessing == IMAGENET
    assert [found.preprocessing[key] for key in ("image_size", "resize")] == [224, 256]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_other_floats_become_float32(load, dtype):
    state = small_state(dtype)
    found = load(torch_form.saved(state))
    want = weights.from_torch(
        {name: value.astype(np.float32) for name, value in state.items()},
        ARCH,
        width=WIDTH,
        stem=STEM,
    )
    chex.assert_trees_all_equal(found.variables, want)


def test_tensors_may_lie_in_one_storage_in_any_order_of_axes(load):
    state = {n: t for n, t in small_state().items() if t.dtype == np.float32}
    items, data, place = {}, b"", 0
    count = sum(value.size for value in state.values())
    for name, value in state.items():
        if value.ndim == 4:  # channels last, as PyTorch lays them out for speed
            value = value.transpose(0, 2, 3, 1).copy().transpose(0, 3, 1, 2)
        source = torch_form.storage("0", "float32", count)
        strides = torch_form.strides_of(value)
        items[name] = tensor(source, value.shape, strides, place)
        data += value.ravel(order="K").tobytes()
        place += value.size
    body = PROTO + torch_form.mapping(items) + STOP
    found = load(torch_form.file_of(body, {"data/0": data}))
    chex.assert_trees_all_equal(found.variables, small_variables())


def test_parameters_and_later_protocols_are_understood(load):
    state = {n: t for n, t in small_state().items() if t.dtype == np.float32}
    _, members = torch_form.described(state)
    function = b"\x8c\x0ctorch._utils\x8c\x12_rebuild_parameter\x93"
    items = {}
    for index, (name, value) in enumerate(state.items()):
        source = torch_form.storage(str(index), "float32", value.size)
        inner = tensor(source, value.shape, torch_form.strides_of(value))
        empty = named("collections.OrderedDict") + b")R"
        items[name] = function + inner + b"\x88" + empty + b"\x87R\x94"
    body = b"\x80\x04" + torch_form.mapping(items) + STOP
    found = load(torch_form.file_of(body, members))
    chex.assert_trees_all_equal(found.variables, small_variables())


@pytest.mark.parametrize("prefix", ["module.", "module.backbone."])
def test_what_is_no_part_of_the_backbone_is_dropped_with_one_line(load, caplog, prefix):
    state = {prefix + name: value for name, value in small_state().items()}
    state[prefix + "fc.weight"] = np.zeros((10, 128), np.float32)
    if "backbone" in prefix:
        state["module.projector.0.weight"] = np.zeros((4, 128), np.float32)
    with caplog.at_level(logging.WARNING, logger="sfrik"):
        found = load(torch_form.saved(state))
    chex.assert_trees_all_equal(found.variables, small_variables())
    (line,) = caplog.messages
    assert "fc.weight" in line
    assert ("projector.0.weight" in line) == ("backbone" in prefix)


@pytest.mark.parametrize(
    "arch",
    [
        "resnet18",
        *(
            pytest.param(arch, marks=pytest.mark.slow)
            for arch in ("resnet34", "resnet50", "resnet50x2")
        ),
    ],
)
def test_features_are_the_originals_through_each_kind_of_file(
    reference, load, tmp_path, arch
):
    data = reference("backbones")
    state = {n: draw(n, tuple(s), int(data["seed"])) for n, s in NAMES[arch]}
    found = load(torch_form.saved(state))
    assert (found.arch, found.width, found.stem) == (arch, 64, "imagenet")
    images = jnp.asarray(data["image_nchw"].transpose(0, 2, 3, 1))
    with jax.default_matmul_precision("highest"):
        features = jax.jit(found.backbone.apply)(found.variables, images)
    want = data[f"{arch}.eval"]
    assert np.linalg.norm(features - want) < 1e-4 * np.linalg.norm(want)
    path = tmp_path / "net.safetensors"
    about = {"arch": arch, "width": 64, "stem": "imagenet", "preprocessing": IMAGENET}
    weights.save(path, found.variables, about)
    again = weights.open_file(path)
    path.unlink()
    chex.assert_trees_all_equal(again.variables, found.variables)
    assert again.backbone == found.backbone
    assert weights.fingerprint(again.variables, arch) == weights.fingerprint(
        found.variables, arch
    )


@pytest.mark.parametrize("arch", NAMES)
def test_names_and_shapes_tell_the_architecture(arch):
    shapes = {name: tuple(shape) for name, shape in NAMES[arch]}
    assert names.detect(shapes) == (arch, 64, "imagenet")


# --- Hostile files: the catalogue X1 ------------------------------------------------


@pytest.mark.parametrize("name", live_payloads(Path("x")))
def test_x1_code_is_refused_by_name_and_never_runs(load, tmp_path, name):
    place = tmp_path / "canary"
    payload = live_payloads(place)[name]
    # Beside sound weights, and before them: nothing is built of such a file.
    instructions, members = torch_form.described(small_state())
    body = PROTO + b"}(" + text("x") + payload + text("model") + instructions + b"u."
    with pytest.raises(CorruptInputError) as caught:
        load(torch_form.file_of(body, members))
    assert not place.exists()
    message = str(caught.value)
    assert message.startswith(f"SFRIK-UNSAFE refused global {name.split()[0]} in ")
    assert "take the file of the backbone alone" in message
    assert "\n" not in message
    # The payload is a live one.
    result = pickle.loads(PROTO + payload + STOP)
    getattr(result, "close", int)()
    assert place.exists()


EMPTY = named("collections.OrderedDict") + b")R"
FLOATS = torch_form.storage("0", "float32", 4)
REBUILD = named("torch._utils._rebuild_tensor_v2")


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (call(named("torch.load"), text("x")), "global torch.load"),
        (call(named("torch.hub.load"), text("x")), "global torch.hub.load"),
        (named("argparse.Namespace") + b")\x81", "global argparse.Namespace"),
        (named("collections.OrderedDict.fromkeys"), "global collections.OrderedDict."),
        (b"\x8c\x0bcollections\x8c\x14OrderedDict.__init__\x93", "global collections."),
        (named("collections.OrderedDict") + b")\x81", "instruction NEWOBJ"),
        (named("collections.OrderedDict") + b")}\x92", "instruction NEWOBJ_EX"),
        (b"(" + named("collections.OrderedDict") + b"o", "instruction OBJ"),
        (b"\x82\x01", "instruction EXT1"),
        (b"P0\n", "instruction PERSID"),
        (call(named("torch.FloatStorage")), "a call of what is no function"),
        (FLOATS + b")R", "a call of what is no function"),
        (tensor(FLOATS, (4,), (1,)) + b"}b", "a state for what is no dictionary"),
        (EMPTY + b"}}\x86b", "a state for what is no dictionary"),
        (named("collections.OrderedDict") + b"}b", "a state for what is no dictionary"),
        (named("x" * 5000 + ".y"), "global xxxxx"),
        (named("x\x1b[2J.y"), "global 'x\\x1b[2J.y'"),
    ],
)
def test_x1_what_no_state_dict_needs_is_refused(load, body, words):
    with pytest.raises(CorruptInputError, match="SFRIK-UNSAFE refused") as caught:
        load(torch_form.file_of(PROTO + body + STOP, {"data/0": bytes(16)}))
    assert words in str(caught.value)
    assert len(str(caught.value)) < 500
    assert str(caught.value).isprintable()


def identifier(*parts: bytes) -> bytes:
    return group(*parts) + b"Q"


def parts_of_identifier(**changes: bytes) -> bytes:
    parts = {
        "label": text("storage"),
        "kind": named("torch.FloatStorage"),
        "key": text("0"),
        "device": text("cpu"),
        "count": number(4),
    }
    return identifier(*(parts | changes).values())


@pytest.mark.parametrize(
    "body",
    [
        parts_of_identifier(key=text("9" * 100_000)),
        parts_of_identifier(key=text("../0")),
        parts_of_identifier(key=text("1")),
        parts_of_identifier(key=text("٣")),
        parts_of_identifier(key=number(0)),
        parts_of_identifier(label=text("module")),
        parts_of_identifier(kind=text("FloatStorage")),
        parts_of_identifier(kind=named("torch.DoubleStorage")),
        parts_of_identifier(kind=named("collections.OrderedDict")),
        parts_of_identifier(count=number(5)),
        parts_of_identifier(count=number(-4)),
        parts_of_identifier(count=number(1 << 2000)),
        parts_of_identifier(count=b"\x88"),
        identifier(text("storage")),
        text("storage") + b"Q",
        b"NQ",
        tensor(FLOATS, (5,), (1,)),
        tensor(FLOATS, (4,), (1,), offset=1),
        tensor(FLOATS, (2, 2), (3, 1)),
        tensor(FLOATS, (2,), (1 << 62,)),
        tensor(FLOATS, (1 << 62,), (0,)),
        tensor(FLOATS, (1 << 2000,), (0,)),
        tensor(FLOATS, (2,), (-1,), offset=3),
        tensor(FLOATS, (2,), (1,), offset=-1),
        tensor(FLOATS, (-1,), (1,)),
        tensor(FLOATS, (0,), (1,), offset=5),
        tensor(FLOATS, (2, 2), (1,)),
        tensor(FLOATS, (1,) * 1000, (1,) * 1000),
        tensor(text("0"), (4,), (1,)),
        call(REBUILD, FLOATS),
        call(REBUILD, FLOATS, *[b"N"] * 5),
        call(REBUILD, *[FLOATS] * 40),
        call(named("collections.OrderedDict"), b"]"),
        call(named("torch._utils._rebuild_parameter"), b"N", b"N", b"N"),
        REBUILD + b"NR",
        b"h\x07",
        b"j\xff\xff\xff\x7f",
        b"t",
        b"(",
        b"u",
        b"}" + b")Ns",
        b"}" + tensor(FLOATS, (4,), (1,)) + b"Ns",
        b"}(" + text("a") + b"u",
        b"]Na" + b"a",
        b"NNs",
        b"NNa",
        b"N)",
        b"",
        b"X\xff\xff\xff\x7fabc",
        b"\x8d" + b"\xff" * 8,
        b"X\x02\x00\x00\x00\xff\xff",
        b"S'\\q'\n",
        b"\xfe",
        b"N." + PROTO + b"N",
    ],
)
def test_x1_a_pickle_that_makes_no_sense_is_refused(load, body):
    with pytest.raises(CorruptInputError, match=r"net\.pth") as caught:
        load(torch_form.file_of(PROTO + body + STOP, {"data/0": bytes(16)}))
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("key", ["neg", "conj", ""])
def test_x1_a_view_with_its_sign_turned_is_refused(load, key):
    instructions, members = torch_form.described(small_state())
    source = torch_form.storage("0", "float32", 108)
    layout = (source, (4, 3, 3, 3), (27, 9, 3, 1))
    said = b"}" + (text(key) + b"\x88s" if key else b"")
    assert instructions.count(tensor(*layout)) == 1
    view = instructions.replace(tensor(*layout), tensor(*layout, metadata=said))
    content = torch_form.file_of(PROTO + view + STOP, members)
    if key:
        with pytest.raises(CorruptInputError, match="save it after resolve_neg"):
            load(content)
    else:
        chex.assert_trees_all_equal(load(content).variables, small_variables())


@pytest.mark.parametrize("unit", [(1 << 61) - 1, 1 << 16])
def test_x1_keys_that_collide_cost_no_time(load, unit):
    keys = b"".join(number(k * unit) + b"N" for k in range(1, 32_001))
    start = time.process_time()
    with pytest.raises(CorruptInputError):
        load(torch_form.file_of(PROTO + b"}(" + keys + b"u" + STOP))
    # 39,000 of the first kind took 33 s when they were taken.
    assert time.process_time() - start < 5


@pytest.mark.parametrize(
    "keys",
    [
        number(1 << 31) + b"N",
        number(-(1 << 31)) + b"N",
        b"G" + bytes(8) + b"N",
        b"".join(number(k) + b"N" for k in range((1 << 15) + 1)),
    ],
)
def test_x1_keys_that_no_state_dict_has_are_refused(load, keys):
    with pytest.raises(CorruptInputError, match=r"neither text nor small|more than"):
        load(torch_form.file_of(PROTO + b"}(" + keys + b"u" + STOP))


@pytest.mark.parametrize(
    "body",
    [
        *(kind + b"A" * 400_000 + b"\n" for kind in (b"S", b"F", b"I", b"L", b"P")),
        b"}" + text("x" * 400_000) + b"Ns",
        b"c" + b"A" * 400_000 + b"\nx\n",
        b"c" + "\u202e".encode() * 100_000 + b"\nx\n",
    ],
)
def test_x1_a_message_is_short_however_long_the_text_of_the_file(load, body):
    with pytest.raises(CorruptInputError) as caught:
        load(torch_form.file_of(PROTO + body + STOP))
    assert len(str(caught.value)) < 700 and str(caught.value).isprintable()


@pytest.mark.parametrize(
    "body",
    [
        b"N",
        b"}",
        text("conv1.weight"),
        b"}" + text("conv1.weight") + b"Ns",
        b"}" + number(3) + tensor(FLOATS, (4,), (1,)) + b"s",
        b"}q\x00" + text("model") + b"h\x00s",
        b"}" + text("state_dict") + b"}s",
    ],
)
def test_x1_a_pickle_of_no_state_dict_is_refused(load, body):
    with pytest.raises(CorruptInputError, match="holds no state dict"):
        load(torch_form.file_of(PROTO + body + STOP, {"data/0": bytes(16)}))


def sound():
    return torch_form.saved(small_state())


def sound_members():
    instructions, members = torch_form.described(small_state())
    parts = {"data.pkl": PROTO + instructions + STOP, **members}
    return [(f"net/{name}", data) for name, data in parts.items()]


def rebuilt(extra=(), **changes):
    return torch_form.archive([*sound_members(), *extra], **changes)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (lambda: rebuilt(local_name="net/data/x"), "another in its header"),
        (lambda: rebuilt(method=8), "is compressed"),
        (lambda: rebuilt(local_size=4), "another in its header"),
        (lambda: rebuilt(size=1 << 30), "reaches beyond its place"),
        (lambda: rebuilt(crc=1), "fails its check sum"),
        (lambda: rebuilt(offset=0), "another in its header|overlaps"),
        (lambda: rebuilt(comment=b"x"), "bytes hide by it"),
        (lambda: rebuilt(central_extra=bytes(65)), "bytes hide by it"),
        (lambda: rebuilt(local_extra=b"MZ" * 33), "bytes hide by it"),
        (lambda: rebuilt(local_extra=b"FB\x40\0" + b"MZ" * 32), "bytes hide by it"),
        (lambda: rebuilt(flags=0x809), "is encrypted"),
        (lambda: rebuilt(flags=0x2040), "is encrypted"),
        (lambda: rebuilt(local_flags=0x809), "is encrypted"),
        (lambda: rebuilt(local_flags=0x2048), "is encrypted"),
        (lambda: rebuilt(count=3), "damaged"),
        (lambda: rebuilt(count=9999), "damaged"),
        (lambda: rebuilt([("net/data.pkl", b"N.")]), "there twice"),
        (lambda: rebuilt([("net/code/data.pkl", b"N.")]), "2 members data.pkl"),
        (lambda: rebuilt([("other/data.pkl", b"N.")]), "2 members data.pkl"),
        (lambda: rebuilt([("net/byteorder", b"big")]), "not little-endian"),
        (lambda: torch_form.archive([("net/x", b"")]), "0 members data.pkl"),
        (lambda: b"#!/bin/sh\n" + sound(), "is no sound safetensors file"),
        (lambda: b"PK\3\4" + sound(), "is no sound PyTorch file"),
        (lambda: sound() + b"x", "no directory of members"),
        (lambda: sound()[:-1], "no directory of members"),
        (lambda: sound()[:5000], "no directory of members"),
        (lambda: sound()[:-22] + bytes(40) + sound()[-22:], "not where it should be"),
        (lambda: b"PK\3\4", "cut short"),
        (lambda: pickle.dumps([1, 2, 3], 2), "PyTorch's old format.*torch.save"),
        (lambda: bytes(257) + b"ustar" + bytes(250), "PyTorch's old format"),
    ],
)
def test_x1_a_damaged_or_disguised_archive_is_refused(load, content, words):
    with pytest.raises(CorruptInputError, match=words):
        load(content())


@pytest.mark.parametrize(
    "changes",
    [{"alignment": 4096}, {"local_extra": bytes(64), "central_extra": bytes(64)}],
)
def test_filler_and_short_fields_of_headers_are_sound(load, changes):
    chex.assert_trees_all_equal(load(rebuilt(**changes)).variables, small_variables())


def test_x1_the_two_directories_must_agree(load):
    content = bytearray(sound())
    place = content.rindex(b"PK\6\6")
    content[place + 40] ^= 1  # the size of the directory in the wide record
    with pytest.raises(CorruptInputError, match="two directories"):
        load(bytes(content))


def test_x1_zip_files_of_python_are_read_but_not_compressed_ones(load, tmp_path):
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        with zipfile.ZipFile(tmp_path / "made.zip", "w", method) as archive:
            for name, data in sound_members():
                archive.writestr(name, data)
        content = (tmp_path / "made.zip").read_bytes()
        if method == zipfile.ZIP_STORED:
            chex.assert_trees_all_equal(load(content).variables, small_variables())
        else:
            with pytest.raises(CorruptInputError, match="is compressed"):
                load(content)


def test_x1_a_pickle_within_a_storage_is_taken_for_numbers(load, tmp_path):
    place = tmp_path / "canary"
    payload = PROTO + live_payloads(place)["posix.system"] + STOP
    state = small_state()
    data = bytearray(state["conv1.weight"].tobytes())
    data[: len(payload)] = payload
    state["conv1.weight"] = np.frombuffer(data, "f4").reshape(4, 3, 3, 3)
    found = load(torch_form.saved(state))
    kernel = np.asarray(found.variables["params"]["conv1"]["kernel"])
    assert kernel.transpose(3, 2, 0, 1).tobytes() == bytes(data)
    assert not place.exists()


def legacy_tar(payload: bytes) -> bytes:
    """What `torch.save` wrote before 0.1.10: a tar with a pickle in each member."""
    members = ("sys_info", "pickle", "storages", "tensors")
    return tar_bytes((name, PROTO + payload + STOP) for name in members)


def legacy_stream(payload: bytes) -> bytes:
    """What it wrote before 1.6: a magic number, a version, and pickles in a row."""
    magic = pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2)
    return magic + PROTO + payload + STOP


@pytest.mark.parametrize("form", [legacy_tar, legacy_stream])
def test_x1_the_old_formats_are_refused_and_not_run(load, tmp_path, form):
    place = tmp_path / "canary"
    payload = live_payloads(place)["posix.system"]
    with pytest.raises(CorruptInputError, match="PyTorch's old format") as caught:
        load(form(payload))
    assert caught.value.code == 65
    assert not place.exists()


@pytest.mark.parametrize("value", [np.nan, -np.inf, 1e300])
def test_values_that_float32_cannot_hold_are_found(load, value):
    state = small_state("float64")
    state["layer2.0.bn1.bias"][3] = value
    with pytest.raises(CorruptInputError, match=r"layer2\.0\.bn1\.bias holds values"):
        load(torch_form.saved(state))


def test_whole_numbers_are_no_weights(load):
    state = small_state()
    state["bn1.bias"] = state["bn1.bias"].astype(np.int64)
    with pytest.raises(CorruptInputError, match=r"bn1\.bias holds int64 values"):
        load(torch_form.saved(state))


MIB = 32
# Files of so many MiB that would make more of themselves. Growth is told in MiB.
BOMBS = """
import sys
import zipfile
from pathlib import Path
from sfrik_jax import weights
from sfrik_jax.errors import CorruptInputError

def resident(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(x.split()[1]) / 1024 for x in lines if x.startswith(name))

weights.names._variable_shapes("resnet14", 4, "small")  # what tracing itself takes
for path in sys.argv[1:]:
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = resident("VmRSS")
    try:
        weights.open_file(path)
    except CorruptInputError as error:
        assert "\\n" not in str(error)
        print(resident("VmHWM") - before)
"""


def bombs():
    size = MIB << 20
    ballast = {"data/0": bytes(size)}
    whole = torch_form.storage("0", "float32", size // 4)
    shared = {
        name: tensor(whole, value.shape, torch_form.strides_of(value))
        for name, value in small_state().items()
    }
    shared["conv1.weight"] = tensor(whole, (4, 3, 3, 3), (0, 0, 0, 0))
    shared |= {f"layer1.0.x{i}": tensor(whole, (size // 4,), (1,)) for i in range(50)}
    return {
        "tensors that share": torch_form.mapping(shared),
        "deep tuples": b")" + b"\x85" * 500_000,
        "deep keys": b"})" + b"\x85" * 500_000 + b"Ns",
        "deep lists": b"]" * 250_000 + b"a" * 249_999,
        "many marks": b"(" * 500_000,
        "dictionaries": b"}" * 500_000,
        "a distant memo": b"Nr\xff\xff\xff\x7f",
        "doubling": b"}" + b")" + b"q\x00h\x00\x86" * 60 + b"Ns",
        "too long": b"(" * 1_000_000,
        "a million deep": b")" + b"\x85" * 1_000_000,
        "a huge identifier": call_storage(b"X" + struct.pack("<I", 1 << 31) + b"0"),
        "a huge number of elements": call_storage(text("0"), number(1 << 62)),
    }, ballast


def call_storage(key: bytes, count: bytes = b"K\x04") -> bytes:
    kind = named("torch.FloatStorage")
    return group(text("storage"), kind, key, text("cpu"), count) + b"Q"


def deflated(pickled: bytes, size: int) -> bytes:
    """A zip file with a compressed member of so many zeros: a thousandth of them."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("net/data.pkl", pickled)
        with archive.open(zipfile.ZipInfo("net/data/0"), "w") as member:
            member.write(bytes(MIB << 20))
        info = zipfile.ZipInfo("net/data/1")
        info.compress_type = zipfile.ZIP_DEFLATED
        with archive.open(info, "w", force_zip64=True) as member:
            for _ in range(size >> 24):
                member.write(bytes(1 << 24))
    return buffer.getvalue()


def test_x1_no_file_makes_more_than_twice_its_size(tmp_path):
    bodies, ballast = bombs()
    paths = []
    for name, body in bodies.items():
        paths.append(tmp_path / f"{name}.pth")
        paths[-1].write_bytes(torch_form.file_of(PROTO + body + STOP, ballast))
    bodies["a zip bomb"] = b""
    paths.append(tmp_path / "a zip bomb.pth")
    paths[-1].write_bytes(deflated(PROTO + b"}" + STOP, 512 << 20))
    done = subprocess.run(
        [sys.executable, "-c", BOMBS, *paths],
        env=os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    growth = dict(zip(bodies, map(float, done.stdout.split()), strict=True))
    assert all(mib < 2 * MIB for mib in growth.values()), growth
