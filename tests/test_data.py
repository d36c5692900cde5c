from typing import Any

import bundle_digits
import numpy as np
import pytest

from elt_zoo.data import ArraySource, digits_to_pixels, load_digits, pixels_to_digits, training_batches

HELDOUT_LABELS = [7, 6, 3, 7, 7, 3, 2, 8, 9, 3, 2, 6]


def test_digits_are_real_and_their_split_is_fixed():
    train, heldout = load_digits("train"), load_digits("heldout")
    assert train.images.shape == (1437, 8, 8, 1) and heldout.images.shape == (360, 8, 8, 1)
    assert train.images.min() == 0 and train.images.max() == 16
    assert np.bincount(heldout.labels).min() >= 35
    both = np.concatenate([train.images, heldout.images]).reshape(1797, -1)
    assert len(np.unique(both, axis=0)) == 1797  # no image is in both parts
    np.testing.assert_array_equal(train.images, load_digits("train").images)
    # Pinned, so that figures measured on the held-out part stay comparable.
    assert heldout.labels[:12].tolist() == HELDOUT_LABELS
    with pytest.raises(ValueError, match="the parts are 'train' and 'heldout'"):
        load_digits("test")  # pyright: ignore[reportArgumentType]


def test_the_digits_of_the_library_are_those_of_scikit_learn():
    arrays = bundle_digits.digits()
    for split in ("train", "heldout"):
        digits = load_digits(split)
        for name in ("images", "labels"):
            kept, made = getattr(digits, name), arrays[f"{split}_{name}"]
            np.testing.assert_array_equal(kept, made)
            assert kept.dtype == made.dtype


def test_pixels_and_levels_convert_both_ways():
    levels = np.arange(17, dtype=np.uint8)
    pixels = digits_to_pixels(levels)
    assert pixels.dtype == np.float32 and (pixels.min(), pixels.max()) == (-1.0, 1.0)
    np.testing.assert_allclose(pixels_to_digits(pixels), levels)
    np.testing.assert_array_equal(pixels_to_digits(np.asarray([-3.0, 3.0])), [0.0, 16.0])


def stream(**options):
    source = ArraySource(np.arange(20)[:, None], np.arange(20))
    defaults: dict[str, Any] = {"batch_size": 5, "seed": 0}
    return training_batches(source, **defaults | options)


def test_every_epoch_is_another_permutation_of_everything():
    batches = stream()
    epochs = [np.concatenate([next(batches).labels for _ in range(4)]).tolist() for _ in range(3)]
    assert all(sorted(epoch) == list(range(20)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    again = stream()
    assert np.concatenate([next(again).labels for _ in range(4)]).tolist() == epochs[0]
    other = stream(seed=1)
    assert np.concatenate([next(other).labels for _ in range(4)]).tolist() != epochs[0]


def test_examples_stay_with_their_labels():
    batch = next(stream())
    np.testing.assert_array_equal(batch.examples[:, 0], batch.labels)


def test_a_restored_stream_goes_on_exactly():
    batches = stream()
    for _ in range(6):
        next(batches)
    position = batches.get_state()
    expected = [next(batches).labels.tolist() for _ in range(5)]
    restored = stream()
    restored.set_state(position)
    assert [next(restored).labels.tolist() for _ in range(5)] == expected


def test_the_parts_of_processes_are_disjoint_and_complete():
    parts = [stream(process_index=i, process_count=2) for i in range(2)]
    seen = [np.concatenate([next(part).labels for _ in range(2)]).tolist() for part in parts]
    assert sorted(seen[0] + seen[1]) == list(range(20))


def test_impossible_streams_are_refused():
    with pytest.raises(ValueError, match="got 0 examples and 0 labels"):
        ArraySource(np.zeros((0, 1)), np.zeros(0, int))
    with pytest.raises(ValueError, match="got 3 examples and 2 labels"):
        ArraySource(np.zeros((3, 1)), np.zeros(2, int))
    with pytest.raises(ValueError, match=r"`training_batches\(batch_size=21\)` cannot be filled"):
        stream(batch_size=21)
    with pytest.raises(ValueError, match="need 0 <= index < count"):
        stream(process_index=2, process_count=2)
