"""`data.on_error=skip`: the same batches, whoever makes them, and a list of the bad."""

import itertools
import socket

import numpy as np
import pytest
from PIL import Image
from test_loader import run_python

from sfrik_jax.data import decode, images, sources, views
from sfrik_jax.data import loader as loaders
from sfrik_jax.data.bad_pictures import BadPictures
from sfrik_jax.data.loader import TrainLoader
from sfrik_jax.errors import BadPictureError, CorruptInputError
from sfrik_jax.image_set import ImageSet

COUNT = 40
# Of every kind: told by the header, by the pixels, and by the end of the file.
BROKEN = {
    3: lambda whole: b"",
    11: lambda whole: whole[: len(whole) // 2],
    12: lambda whole: whole[:-2],
    30: lambda whole: b"<html></html>",
    38: lambda whole: whole[:-2],
}
NAMES = {f"{number:02d}.jpg" for number in BROKEN}
PAIR = views.build(16, recipe="vicreg")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """40 JPEG files of one size, in two classes by turns, five of them broken."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for number in range(COUNT):
        path = folder / "ab"[number % 2] / f"{number:02d}.jpg"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (24, 30, 3), dtype=np.uint8)).save(path)
        if number in BROKEN:
            path.write_bytes(BROKEN[number](path.read_bytes()))
    return folder


@pytest.fixture
def source(folder):
    return sources.FolderSource(folder)


def skipping(max_bad=-1, seed=3):
    return BadPictures(COUNT, seed=seed, on_error="skip", max_bad=max_bad)


def make(source, bad=None, *, workers=1, batch_size=8, residence="host", **settings):
    return TrainLoader(
        source,
        PAIR,
        batch_size=batch_size,
        seed=3,
        workers=workers,
        residence=residence,
        bad=bad or skipping(),
        **settings,
    )


def take(loader, steps, first=0):
    batches = loader.iterate(first)
    taken = [next(batches) for _ in range(steps)]
    batches.close()
    return [np.asarray(batch["views"][0]) for batch in taken]


def noted(loader):
    return [id.rpartition("/")[2] for id in loader.bad.noted]


@pytest.mark.parametrize("resample", ["exact", "fast"])
def test_i1_batches_and_findings_do_not_depend_on_the_threads(source, resample):
    one = make(source, resample=resample)
    want = take(one, 10)
    assert set(noted(one)) == NAMES
    for workers in (2, 4):
        many = make(source, workers=workers, resample=resample)
        np.testing.assert_array_equal(take(many, 10), want)
        # In the order of the batches, not in that of the threads.
        assert noted(many) == noted(one)


def test_i1_a_step_is_the_same_alone_and_in_a_resumed_run(source):
    want = take(make(source), 10)
    resumed = skipping()
    first = make(source)
    take(first, 4)
    resumed.resume(first.bad.record())
    np.testing.assert_array_equal(take(make(source, resumed), 6, first=4), want[4:])
    alone = make(source)
    np.testing.assert_array_equal(alone.batch(7)["views"][0], want[7])


def test_i1_each_process_makes_its_rows_of_the_same_batch(source, monkeypatch):
    want = take(make(source), 5)
    halves = []
    for rows in (np.arange(4), np.arange(4, 8)):
        monkeypatch.setattr(loaders.mesh_lib, "process_rows", lambda *_, r=rows: r)
        halves.append(take(make(source), 5))
    np.testing.assert_array_equal(np.concatenate(halves, axis=1), want)


TWO_PROCESSES = """
    import sys
    import jax
    port, rank, folder, out = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4]
    jax.distributed.initialize(
        f"localhost:{port}", 2, rank, coordinator_bind_address=f"127.0.0.1:{port}"
    )
    import numpy as np
    from jax.experimental import multihost_utils
    from sfrik_jax.data import bad_pictures, loader, sources, views
    from sfrik_jax.mesh import make_mesh
    batches = loader.TrainLoader(
        sources.FolderSource(folder),
        views.build(16, recipe="vicreg"),
        batch_size=8,
        seed=3,
        mesh=make_mesh(),
        bad=bad_pictures.BadPictures(40, seed=3, on_error="skip"),
    )
    made = [batches.batch(step)["views"][0] for step in range(5)]
    made = [multihost_utils.process_allgather(each, tiled=True) for each in made]
    if rank == 0:
        np.save(out, made)
    jax.distributed.shutdown()
"""


def test_i1_two_processes_make_the_batches_of_one(source, folder, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    out = str(tmp_path / "views.npy")
    processes = [
        run_python(TWO_PROCESSES, port, rank, str(folder), out) for rank in "01"
    ]
    bad = []
    for process in processes:
        _, said = process.communicate(timeout=120)
        assert process.returncode == 0, said
        bad += [line for line in said.splitlines() if line.startswith("SFRIK-DATA-BAD")]
    assert {line.partition(" reason=")[0][-6:] for line in bad} == NAMES
    np.testing.assert_array_equal(np.load(out), take(make(source), 5))


def test_i1_host_and_device_have_the_same_pictures_in_the_same_places(source):
    on_device = make(source, residence="device")
    on_host = make(source)
    assert set(noted(on_device)) == NAMES
    for step in range(5):
        resident, hosted = on_device.batch(step), on_host.batch(step)
        np.testing.assert_array_equal(resident["index"], hosted["index"])
        pixels = np.asarray(resident["images"])
        for row, i in enumerate(np.asarray(resident["index"])):
            boxes = np.asarray(resident["boxes"][row])
            want = decode.Picture(pixels[i]).crops(
                list(boxes), [16] * 2, ["bicubic"] * 2
            )
            np.testing.assert_array_equal(hosted["views"][0][row], want)


def test_i1_a_bad_picture_has_a_good_one_in_its_place_and_its_own_crops(source):
    loader = make(source, residence="device")
    pixels = np.asarray(loader.batch(0)["images"])
    names = [source.name(i)[-6:] for i in range(COUNT)]
    good = {
        i: decode.decode_rgb(source.read(i))
        for i in range(COUNT)
        if names[i] not in NAMES
    }
    for i in range(COUNT):
        places = [j for j, image in good.items() if (image == pixels[i]).all()]
        assert len(places) == 1
        assert (places == [i]) == (i in good)
    untouched = TrainLoader(
        sources.ArraySource(pixels), PAIR, batch_size=8, seed=3, residence="device"
    )
    for step in range(5):
        np.testing.assert_array_equal(
            loader.batch(step)["boxes"], untouched.batch(step)["boxes"]
        )


def test_i1_another_seed_takes_other_pictures(source):
    stand_ins = [
        images.load_images(source, skipping(seed=seed))[source.files.index("b/03.jpg")]
        for seed in (3, 4)
    ]
    assert (stand_ins[0] != stand_ins[1]).any()


def test_i1_each_finding_is_printed_once(source, capsys):
    loader = make(source)
    take(loader, 15)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == len(BROKEN)
    assert all(line.startswith("SFRIK-DATA-BAD id=/") for line in lines)
    assert [line.partition(" reason=")[0][-6:] for line in lines] == noted(loader)


def test_i1_the_budget_ends_the_run_in_the_same_place(source):
    whole = make(source)
    batches = whole.iterate()
    want = 0
    while next(batches) and len(whole.bad.noted) <= 2:
        want += 1
    batches.close()
    for workers in (1, 4, 4):
        batches = make(source, skipping(max_bad=2), workers=workers).iterate()
        taken = 0
        with pytest.raises(CorruptInputError, match="the budget is 2; the last is"):
            for _ in itertools.islice(batches, want + 1):
                taken += 1
        assert taken == want


def test_i1_the_budget_counts_what_earlier_sessions_found(source):
    bad = skipping(max_bad=5)
    take(make(source, bad), 10)
    with pytest.raises(CorruptInputError, match="5 pictures are bad, the budget is 4"):
        skipping(max_bad=4).resume(bad.record())


@pytest.mark.parametrize(
    ("count", "max_bad", "budget"),
    [(64, -1, 100), (5_000, -1, 100), (1_281_167, -1, 1_281), (5_000, 0, 0), (9, 7, 7)],
)
def test_i1_the_budget_is_a_thousandth_or_a_hundred(count, max_bad, budget):
    assert BadPictures(count, max_bad=max_bad).budget == budget


def test_i1_a_set_without_a_good_picture_is_told(tmp_path):
    for number in range(8):
        (tmp_path / f"{number}.jpg").write_bytes(b"")
    with pytest.raises(CorruptInputError, match="and so are 100 pictures drawn"):
        make(sources.FolderSource(tmp_path)).batch(0)


def test_i1_what_was_saved_is_what_was_found(source):
    records = []
    loader = make(source)
    loader.bad.save = records.append
    take(loader, 10)
    assert {each["id"][-6:] for each in records[-1]["pictures"]} == NAMES
    assert records[-1]["budget"] == 100


def test_i1_raise_names_the_picture_and_the_way_out(source):
    with pytest.raises(BadPictureError, match=r"or set data\.on_error=skip"):
        take(make(source, BadPictures(COUNT)), 5)
    with pytest.raises(BadPictureError, match=r"id=.*\d\d\.jpg reason=cannot be"):
        make(source, BadPictures(COUNT), residence="device")


def image_set(source, bad):
    return ImageSet(source, image_size=16, resize=16, workers=2, bad=bad)


def test_i1_probes_learn_from_the_good_pictures_and_their_labels(source):
    learned = image_set(source, skipping())
    pixels = np.concatenate(list(learned.batches()))
    good = [i for i in range(COUNT) if source.name(i)[-6:] not in NAMES]
    assert learned.left_out == len(BROKEN)
    assert learned.labels is not None and source.labels is not None
    np.testing.assert_array_equal(learned.labels, source.labels[good])
    want = [decode.resize_center_crop(source.read(i), 16, 16, "bilinear") for i in good]
    np.testing.assert_array_equal(pixels, want)


def test_i1_a_bad_picture_to_test_on_always_raises(source):
    with pytest.raises(BadPictureError) as raised:
        list(image_set(source, None).batches())
    assert "on_error" not in str(raised.value)
