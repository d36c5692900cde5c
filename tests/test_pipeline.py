"""The stream of batches: what it sees never depends on who reads it, and bad files are replaced, named and counted."""

import contextlib
import logging
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from elt_zoo.data import (
    AbstractSource,
    ArraySource,
    Batch,
    Clips,
    DataError,
    Images,
    Latents,
    Subset,
    Tokens,
    UnreadableExample,
    UnreadableLog,
    Visit,
    first_examples,
    from_pixels,
    hold_out,
    sample_latents,
    to_pixels,
    to_tokens,
    training_batches,
)
from elt_zoo.sharding import data_mesh, shard_batch

COUNT = 23


class Noise(AbstractSource):
    """Images that are random in every visit; some files are bad."""

    class_names = ("even", "odd")

    def __init__(self, bad=()):
        self._bad = set(bad)

    def __len__(self):
        return COUNT

    def read(self, visit):
        if visit.index in self._bad:
            raise UnreadableExample("it is empty")
        image = visit.rng().integers(0, 256, (2, 2, 3)).astype(np.uint8)
        # The label tells the index, so that tests can follow it.
        return Images(image, np.asarray(visit.index, np.int32))

    def name(self, index):
        return f"file{index}"


def some_batches(count, source=None, **options):
    defaults: dict[str, Any] = {"batch_size": 8, "seed": 5}
    stream = training_batches(Noise() if source is None else source, **defaults | options)
    with contextlib.closing(stream):
        return [next(stream) for _ in range(count)]


def assert_same(a, b):
    for x, y in zip(a, b, strict=True):
        jax.tree.map(np.testing.assert_array_equal, x, y)


@pytest.fixture(scope="module")
def stream():
    """Nine batches, more than three epochs."""
    return some_batches(9, workers=0)


def test_a_seed_decides_everything(stream):
    assert_same(some_batches(9, workers=0), stream)
    other = some_batches(1, workers=0, seed=6)[0]
    assert (other.labels != stream[0].labels).any()


def test_the_number_of_workers_changes_nothing(stream):
    for workers in (1, 3, None):
        assert_same(some_batches(9, workers=workers), stream)


def test_every_epoch_sees_each_example_once_and_draws_anew(stream):
    labels = np.concatenate([batch.labels for batch in stream])
    images = np.concatenate([batch.images for batch in stream])
    for epoch in range(3):
        assert sorted(labels[epoch * COUNT : (epoch + 1) * COUNT]) == list(range(COUNT))
    first, second = (images[np.flatnonzero(labels == 4)[epoch]] for epoch in range(2))
    assert (first != second).any()
    np.testing.assert_array_equal(second, Noise().read(Visit(4, epoch=1, seed=5)).images)


def test_four_processes_see_the_global_batches_of_one(stream):
    parts = [some_batches(9, batch_size=2, process_index=index, process_count=4, workers=0) for index in range(4)]
    for whole, *shards in zip(stream, *parts, strict=True):
        # One part after the other, as the devices of the processes lie in a mesh.
        np.testing.assert_array_equal(np.concatenate([shard.labels for shard in shards]), whole.labels)
        np.testing.assert_array_equal(np.concatenate([shard.images for shard in shards]), whole.images)


def test_a_position_holds_for_any_number_of_processes(stream):
    one = training_batches(Noise(), batch_size=8, seed=5, workers=0)
    two = [
        training_batches(Noise(), batch_size=4, seed=5, process_index=index, process_count=2, workers=0)
        for index in range(2)
    ]
    for _ in range(3):
        next(one)
    for part in two:
        part.set_state(one.get_state())
    labels = np.concatenate([next(part).labels for part in two])
    np.testing.assert_array_equal(labels, stream[3].labels)
    with pytest.raises(ValueError, match=r"`set_state\(\{'next_index': 3\}\)` is no position of batches of 8 examples"):
        one.set_state({"next_index": 3})


def test_a_position_of_the_first_checkpoints_still_holds(stream):
    batches = training_batches(Noise(), batch_size=8, seed=5, workers=0)
    batches.set_state({"next_index": 24})  # as Grain's own iterators gave it to one process
    np.testing.assert_array_equal(next(batches).labels, stream[3].labels)


@pytest.mark.parametrize(("before", "after"), [(0, 2), (2, 0), (2, 3)])
def test_a_restored_stream_goes_on_in_the_middle_of_an_epoch_with_any_workers(stream, before, after):
    first = training_batches(Noise(), batch_size=8, seed=5, workers=before)
    second = training_batches(Noise(), batch_size=8, seed=5, workers=after)
    with contextlib.closing(first), contextlib.closing(second):
        for _ in range(4):
            next(first)
        second.set_state(first.get_state())
        assert_same([next(second) for _ in range(5)], stream[4:])


def test_whole_batches_are_read_at_once_and_alike():
    rows = np.arange(40)
    source = ArraySource(rows[:, None], rows % 3)
    assert source.num_classes == 3 and source.class_names == ("0", "1", "2")

    class Single(ArraySource):
        batched = False

    alone = Single(rows[:, None], rows % 3)
    expected = some_batches(7, alone, workers=0)
    assert_same(some_batches(7, source, workers=0), expected)
    assert_same(some_batches(7, source, workers=2), expected)
    assert source[3].examples == 3 and source.name(3) == "example 3"


def test_batches_are_placed_ahead_of_their_use(stream):
    mesh = data_mesh()
    placed = some_batches(2, workers=2, put=lambda batch: shard_batch(batch, mesh))
    assert isinstance(placed[0].images, jax.Array) and len(placed[0].images.devices()) == 4
    assert_same(placed, stream[:2])


def test_bad_files_are_replaced_named_and_counted(stream, caplog):
    unreadable = UnreadableLog()
    with caplog.at_level(logging.WARNING, "elt_zoo.data"):
        batches = some_batches(6, Noise(bad=(4, 5)), unreadable=unreadable, workers=2)
    assert set(unreadable.names) == {"file4", "file5"}
    assert sorted(record.args[0] for record in caplog.records) == ["file4", "file5"]
    assert "skipped file4: it is empty" in caplog.text
    for batch, whole in zip(batches, stream, strict=False):
        # The next that can be read takes the place; nobody else's moves.
        np.testing.assert_array_equal(batch.labels, np.where(np.isin(whole.labels, (4, 5)), 6, whole.labels))
    # A batch that is read at once falls back to one by one.
    source = Noise(bad=(0,))
    source.batched = True
    assert 0 not in np.concatenate([batch.labels for batch in some_batches(3, source, workers=0)])


def test_too_many_bad_files_stop_the_run():
    with pytest.raises(DataError, match=r"2 examples could not be read, more than the 1 allowed(.|\n)*it is empty"):
        some_batches(3, Noise(bad=(4, 5)), unreadable=UnreadableLog(1), workers=2)
    with pytest.raises(DataError, match="None of the 23 examples could be read; the first is file0"):
        some_batches(1, Noise(bad=range(COUNT)), workers=0)
    with pytest.raises(ValueError, match=r"`UnreadableLog\(limit=-1\)` must be at least 0"):
        UnreadableLog(-1)
    with pytest.raises(ValueError, match=r"`training_batches\(workers=-1\)` must be 0 or more"):
        some_batches(1, workers=-1)


def test_a_source_parts_in_two():
    train, heldout = hold_out(COUNT, 5)
    assert sorted([*train, *heldout]) == list(range(COUNT)) and len(heldout) == 5
    np.testing.assert_array_equal(heldout, hold_out(COUNT, 5)[1])
    subset = Subset(Noise(), heldout)
    assert len(subset) == 5 and subset.name(2) == f"file{heldout[2]}" and subset.num_classes == 2
    np.testing.assert_array_equal(first_examples(subset, 3).labels, heldout[:3])
    np.testing.assert_array_equal(subset[1].images, Noise()[int(heldout[1])].images)
    replaced = first_examples(Subset(Noise(bad=(heldout[0],)), heldout), 99)
    np.testing.assert_array_equal(replaced.labels, [heldout[1], *heldout[1:]])
    with pytest.raises(ValueError, match=r"the indices \[23, -1\] of a source of 23 examples"):
        Subset(Noise(), [0, 23, -1])
    with pytest.raises(ValueError, match="cannot keep 23 of 23 examples"):
        hold_out(COUNT, 23)


def test_bytes_become_pixels_on_the_device_and_back():
    every = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    batch = to_pixels(Images(every, np.zeros(1, np.int32)))
    assert batch.examples.dtype == jnp.float32 and float(batch.examples.min()) == -1.0
    assert float(batch.examples.max()) == 1.0
    np.testing.assert_array_equal(from_pixels(batch.examples), every)
    assert to_pixels(Clips(every[None], np.zeros(1, np.int32))).examples.shape == (1, 1, 16, 16, 1)
    np.testing.assert_array_equal(from_pixels(np.asarray([-3.0, 3.0], np.float32)), [0, 255])


def test_latents_are_drawn_anew_from_their_posterior():
    mean = np.full((4000, 1, 1, 1), 2.0, np.float16)
    stored = Latents(mean, np.full_like(mean, np.log(0.25)), np.zeros(4000, np.int32))
    draw = jax.jit(lambda key: sample_latents(stored, scale=0.5, key=key))
    first, second = (np.asarray(draw(jax.random.key(seed)).examples) for seed in range(2))
    assert isinstance(draw(jax.random.key(0)), Batch) and first.dtype == np.float32 and (first != second).any()
    assert first.mean() == pytest.approx(1.0, abs=0.02) and first.std() == pytest.approx(0.25, abs=0.02)


def test_ids_become_integers():
    batch = to_tokens(Tokens(np.asarray([[[1, 65535]]], np.uint16), np.zeros(1, np.int32)))
    assert batch.examples.dtype == jnp.int32 and batch.examples.tolist() == [[[1, 65535]]]
