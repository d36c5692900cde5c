"""Precomputing: what a tokenizer makes of a source is what the shards give."""

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from elt_zoo.data import (
    AbstractSource,
    Clips,
    DataError,
    DigitImages,
    Images,
    ImageTransform,
    ShardedImages,
    ShardedLatents,
    ShardedTokens,
    ShardOptions,
    UnreadableExample,
    UnreadableLog,
    Views,
    Visit,
    decode_image,
    image_folder,
    load_digits,
    open_shards,
    pack_images,
    precompute,
    to_pixels,
    training_batches,
)
from elt_zoo.data.shards._index import ShardPlan
from elt_zoo.data.shards._writer import ShardWriter
from elt_zoo.sharding import data_mesh, replicate, shard_batch
from elt_zoo.tokenizers import AutoencoderKLConfig, GreyLevels, PatchCodebook, VQGANConfig, save_tokenizer

SIZE = 8


class Pictures(AbstractSource):
    """Random pictures with three classes, some of which cannot be read."""

    class_names = ("a", "b", "c")

    def __init__(self, count, size=SIZE, channels=3, unreadable=(), kind: Callable = Images):
        shape = (count, size, size, channels) if kind is Images else (count, 4, size, size, channels)
        self.pixels = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
        self.unreadable = unreadable
        self.kind = kind

    def __len__(self):
        return len(self.pixels)

    def name(self, index):
        return f"picture {index}"

    def read(self, visit):
        if visit.index in self.unreadable:
            raise UnreadableExample("torn")
        return self.kind(self.pixels[visit.index], np.asarray(visit.index % 3, np.int32))


def codebook(seed=0):
    codes = jax.random.uniform(jax.random.key(seed), (32, 12), minval=-1.0, maxval=1.0)
    return PatchCodebook(codes, (SIZE, SIZE, 3), 2)


def encoded(tokenizer, pixels):
    """What the tokenizer says of some pictures, one by one."""
    batch = to_pixels(Images(pixels, np.zeros(len(pixels), np.int32))).examples
    encode = eqx.filter_jit(tokenizer.encode)
    return jax.tree.map(lambda *leaves: np.stack(leaves), *[encode(image) for image in batch])


def all_views(source, index, count):
    """Every view of an example, by its epochs, in no order."""
    return {source.read(Visit(index, epoch)).ids.tobytes() for epoch in range(20 * count)}


def test_a_picture_has_its_views():
    pixels = np.arange(6 * 7 * 3, dtype=np.uint8).reshape(6, 7, 3)
    np.testing.assert_array_equal(Views.ONE.cut(pixels, 4), pixels[None, 1:5, 1:5])
    np.testing.assert_array_equal(Views.FLIP.cut(pixels, 4), np.stack([pixels[1:5, 1:5], pixels[1:5, 1:5][:, ::-1]]))
    ten = Views.TEN_CROPS.cut(pixels, 4)
    corners = [pixels[:4, :4], pixels[:4, 3:], pixels[2:, :4], pixels[2:, 3:], pixels[1:5, 1:5]]
    np.testing.assert_array_equal(ten, np.stack([*corners, *(corner[:, ::-1] for corner in corners)]))
    clip = np.stack([pixels, pixels + 1])
    for views in Views:
        cut = views.cut(clip, 4)
        assert len(cut) == views.count
        for frame in range(2):
            np.testing.assert_array_equal(cut[:, frame], views.cut(clip[frame], 4))
    with pytest.raises(ValueError, match=r"`Views\.cut\(size=7\)` got pictures of 6 × 7\. Let the source make them"):
        Views.ONE.cut(pixels, 7)


@pytest.mark.parametrize("workers", [0, 2])
def test_tokens_are_what_the_tokenizer_says_of_every_view(tmp_path, workers):
    source, tokenizer = Pictures(21, unreadable=(4, 20)), codebook()
    index = precompute(
        source,
        tokenizer,
        tmp_path / "tokens",
        size=SIZE,
        batch_size=8,
        options=ShardOptions(shard_size=10, workers=workers),
    )
    assert index == open_shards(tmp_path / "tokens")
    assert [shard.examples for shard in index.shards] == [9, 10, 0]
    assert index.skipped == {"picture 4": "torn", "picture 20": "torn"}
    assert (index.plan.kind, index.plan.codebook_size, index.plan.input_shape) == ("tokens", 32, (8, 8, 3))
    tokens = ShardedTokens(tmp_path / "tokens", tokenizer=tokenizer, shape=tokenizer.grid)
    readable = [row for row in range(21) if row not in (4, 20)]
    assert len(tokens) == len(readable) and tokens.class_names == ("a", "b", "c")
    plain, mirrored = (encoded(tokenizer, source.pixels[readable][:, :, ::step]) for step in (1, -1))
    for place, row in enumerate(readable):
        expected = {ids[place].astype(np.uint16).tobytes() for ids in (plain, mirrored)}
        assert all_views(tokens, place, 2) == expected
        assert tokens.read(Visit(place)).labels == row % 3
    batch = next(training_batches(tokens, batch_size=19, seed=0))
    assert np.bincount(batch.labels).tolist() == [7, 6, 6] and batch.ids.dtype == np.uint16


def test_ten_crops_are_cut_from_larger_pictures(tmp_path):
    source, tokenizer = Pictures(3, size=10), codebook()
    options = {"size": SIZE, "views": Views.TEN_CROPS}
    index = precompute(source, tokenizer, tmp_path / "tokens", batch_size=20, **options)
    assert index.plan.input_shape == (SIZE, SIZE, 3)
    tokens = ShardedTokens(tmp_path / "tokens", tokenizer=tokenizer)
    for row in range(3):
        views = encoded(tokenizer, Views.TEN_CROPS.cut(source.pixels[row], SIZE)).astype(np.uint16)
        assert all_views(tokens, row, 10) == {ids.tobytes() for ids in views}
    with pytest.raises(ValueError, match="needs at least 10, the views of one example"):
        precompute(source, tokenizer, tmp_path / "other", batch_size=9, **options)


class FrameLevels(eqx.Module):
    """The grey level of every frame of a clip, in steps of 1/60,000."""

    scale: jax.Array
    codebook_size: int = eqx.field(static=True, default=2**16 + 1)

    def encode(self, clip):
        return jnp.rint(self.scale * (jnp.mean(clip, axis=(1, 2, 3)) + 1.0)).astype(jnp.int32)


def test_clips_become_tokens_too_and_large_codebooks_get_wider_ids(tmp_path):
    source = Pictures(3, kind=Clips)
    index = precompute(source, FrameLevels(jnp.asarray(3e4)), tmp_path / "tokens", size=SIZE)
    assert index.plan.fields == {"ids": ("<u4", (2, 4))} and index.plan.input_shape == (4, SIZE, SIZE, 3)
    ids = np.stack([ShardedTokens(tmp_path / "tokens")[row].ids for row in range(3)])
    np.testing.assert_allclose(ids, 3e4 * source.pixels.mean((2, 3, 4)) / 127.5, atol=2.0)


class Moments(eqx.Module):
    """Mean and log-variance proportional to the pixels."""

    scale: jax.Array

    def encode(self, image):
        return self.scale * image, 15.0 * image - 10.0


def test_latents_are_mean_and_log_variance(tmp_path):
    source, autoencoder = Pictures(3), Moments(jnp.asarray(4.0))
    pixels = np.float64(source.pixels) / 127.5 - 1.0
    for dtype, tolerance in ((np.float16, 2.0**-11), (np.float32, 1e-6)):
        folder = tmp_path / np.dtype(dtype).name
        index = precompute(source, autoencoder, folder, size=SIZE, views=Views.ONE, batch_size=2, dtype=dtype)
        assert index.plan.kind == "latents" and index.plan.codebook_size is None
        batch = ShardedLatents(folder, tokenizer=autoencoder, shape=(SIZE, SIZE, 3)).read_batch([*map(Visit, range(3))])
        assert batch.mean.dtype == batch.log_variance.dtype == dtype and batch.labels.tolist() == [0, 1, 2]
        np.testing.assert_allclose(np.float64(batch.mean), 4.0 * pixels, rtol=tolerance, atol=1e-5)
        np.testing.assert_allclose(np.float64(batch.log_variance), 15.0 * pixels - 10.0, rtol=tolerance, atol=1e-5)
    with pytest.raises(DataError, match="made with another tokenizer"):
        ShardedLatents(folder, tokenizer=Moments(jnp.asarray(4.5)))


@pytest.mark.parametrize("value", [1e5, np.nan])
def test_latents_that_do_not_fit_their_dtype_are_refused(tmp_path, value):
    folder = tmp_path / "latents"
    with pytest.raises(ValueError, match=r"gave a mean of .*, which float16 cannot hold\. Encode in float32"):
        precompute(Pictures(2), Moments(jnp.asarray(value)), folder, size=SIZE)
    assert [path.name for path in folder.iterdir()] == ["index.json"]


@pytest.mark.slow
def test_the_networks_of_the_library_are_encoders(tmp_path):
    source = Pictures(4)
    options = {"size": SIZE, "views": Views.ONE, "batch_size": 4}
    vqgan = VQGANConfig(
        image_size=SIZE, filters=4, channel_multipliers=(1, 1), num_res_blocks=1, embedding_dim=4, groups=2
    ).build(key=jax.random.key(0))
    precompute(source, vqgan, tmp_path / "tokens", **options)
    tokens = ShardedTokens(tmp_path / "tokens", tokenizer=vqgan, shape=vqgan.grid)
    np.testing.assert_array_equal(np.stack([tokens[row].ids for row in range(4)]), encoded(vqgan, source.pixels))
    autoencoder = AutoencoderKLConfig(block_out_channels=(8, 8), layers_per_block=1, latent_channels=2, groups=2).build(
        key=jax.random.key(0)
    )
    precompute(source, autoencoder, tmp_path / "latents", **options)
    batch = ShardedLatents(tmp_path / "latents", tokenizer=autoencoder).read_batch([*map(Visit, range(4))])
    mean, log_variance = encoded(autoencoder, source.pixels)
    np.testing.assert_allclose(np.float32(batch.mean), mean, rtol=2.0**-11, atol=1e-5)
    np.testing.assert_allclose(np.float32(batch.log_variance), log_variance, rtol=2.0**-11, atol=1e-5)


class Interrupted(Exception):
    pass


def test_an_interruption_costs_one_shard_and_changes_nothing(tmp_path):
    source, tokenizer = Pictures(20), codebook()

    def encode(name, tokenizer=tokenizer, views=Views.FLIP, **changes):
        defaults: dict[str, Any] = {"shard_size": 6, "workers": 1}
        options = ShardOptions(**defaults | changes)
        return precompute(source, tokenizer, tmp_path / name, size=SIZE, batch_size=4, views=views, options=options)

    def contents(name):
        return {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}

    whole = encode("whole")

    def interrupt(progress):
        if progress.done >= 15:
            raise Interrupted

    with pytest.raises(Interrupted):
        encode("parts", on_progress=interrupt)
    assert {path.suffix for path in (tmp_path / "parts").iterdir()} == {".json", ".array_record"}
    stop = threading.Event()
    stop.set()
    assert encode("parts", stop=stop) is None
    before = contents("parts")
    for other, changes, text in [
        (codebook(1), {}, "fingerprint: saved"),
        (tokenizer, {"views": Views.ONE}, "views: saved 'flip', given 'one'"),
        (tokenizer, {"shard_size": 5}, "shard_size: saved 6, given 5"),
        (tokenizer, {"description": {"data": "others"}}, r"description.data: saved '\(missing\)', given 'others'"),
    ]:
        with pytest.raises(DataError, match=rf"(?s)holds other shards.*{text}.*Nothing was changed"):
            encode("parts", other, **changes)
    assert contents("parts") == before and len(before) == 5  # the index, and two shards with a note each
    reports = []
    assert encode("parts", on_progress=reports.append) == whole
    assert reports[0] == (12, 20, 0) and reports[-1] == (20, 20, 0)
    assert contents("parts") == contents("whole")


def test_processes_share_the_work_and_batches_may_be_placed(tmp_path):
    source, tokenizer, placed = Pictures(20, unreadable=(3,)), codebook(), []

    def put(batch):
        placed.append(batch.images.shape)
        return jax.device_put(batch)

    def encode(name, **changes):
        options = ShardOptions(shard_size=6, workers=0, **changes)
        return precompute(source, tokenizer, tmp_path / name, size=SIZE, batch_size=6, put=put, options=options)

    assert encode("tokens", process_index=1, process_count=2) is None
    index = encode("tokens", process_index=0, process_count=2)
    assert index is not None and len(index) == 19
    assert index == encode("alone")
    assert set(placed) == {(6, SIZE, SIZE, 3)}  # one shape, one program


def test_several_devices_give_the_same_shards(tmp_path):
    source, mesh = Pictures(6), data_mesh()
    assert mesh.size == 4
    options: dict[str, Any] = {"size": SIZE, "batch_size": 8}
    index = precompute(source, codebook(), tmp_path / "one", **options)
    sharded = precompute(
        source,
        replicate(codebook(), mesh),
        tmp_path / "four",
        put=lambda batch: shard_batch(batch, mesh),
        **options,
    )
    assert sharded == index


def test_what_cannot_be_precomputed_is_refused(tmp_path):
    source, folder = Pictures(4), tmp_path / "tokens"
    with pytest.raises(
        ValueError, match=r"`ShardOptions\(process_index=2, process_count=2\)`: need 0 <= index < count"
    ):
        ShardOptions(process_index=2, process_count=2)
    with pytest.raises(ValueError, match=r"`ShardOptions\(shard_size=0\)` must be at least one example"):
        ShardOptions(shard_size=0)
    with pytest.raises(ValueError, match=r"`ShardOptions\(workers=-1\)` must be 0 or more threads"):
        ShardOptions(workers=-1)
    with pytest.raises(ValueError, match=r"`ShardOptions\(description=…\)` holds what JSON cannot"):
        ShardOptions(description={"classes": np.arange(3)})
    with pytest.raises(ValueError, match=r"`PatchCodebook\.encode` got an image of shape \(6, 6, 3\)"):
        precompute(source, codebook(), folder, size=6)
    with pytest.raises(DataError, match="None of the 4 examples could be read; the first is picture 0"):
        precompute(Pictures(4, unreadable=range(4)), codebook(), folder, size=SIZE)

    class Identity(eqx.Module):
        def encode(self, image):
            return image

    with pytest.raises(TypeError, match=r"got a Identity whose `encode` gives .* It must give ids"):
        precompute(source, Identity(), folder, size=SIZE)
    assert not folder.exists()
    with pytest.raises(DataError, match="2 examples could not be read, more than the 1 allowed"):
        precompute(
            Pictures(4, unreadable=(1, 2)),
            codebook(),
            folder,
            size=SIZE,
            options=ShardOptions(unreadable=UnreadableLog(1)),
        )
    batches = Pictures(2, kind=lambda pixels, label: (pixels, label))
    with pytest.raises(TypeError, match="encodes images or clips; the source gave a tuple"):
        precompute(batches, codebook(), folder, size=SIZE)


@pytest.fixture
def files(tmp_path):
    generator = np.random.default_rng(0)
    for name, count in (("cat", 3), ("dog", 4)):
        (tmp_path / "files" / name).mkdir(parents=True)
        for number in range(count):
            pixels = generator.integers(0, 256, (12, 16, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "files" / name / f"{number}.png")
    (tmp_path / "files" / "dog" / "1.png").write_bytes(b"no image")
    return image_folder(tmp_path / "files", ImageTransform(8, random_crop=True, flip=True))


def test_packed_images_are_the_files(files, tmp_path):
    index = pack_images(files, tmp_path / "shards", options=ShardOptions(shard_size=4, workers=2))
    assert [shard.examples for shard in index.shards] == [4, 3]
    packed = ShardedImages(tmp_path / "shards", files.transform)
    assert len(packed) == 7 and packed.class_names == ("cat", "dog")
    for row in range(7):
        assert packed.encoded(row) == files.encoded(row) and packed.label(row) == files.label(row)
        if row != 4:
            ours, theirs = (source.read(Visit(row, 3, 1)) for source in (packed, files))
            np.testing.assert_array_equal(ours.images, theirs.images)
            assert ours.labels == theirs.labels
    with pytest.raises(UnreadableExample):
        packed.read(Visit(4))
    assert packed.name(5).endswith("shard-00001-of-00002.array_record, record 1")
    # Shards of shards are the same shards.
    assert pack_images(packed, tmp_path / "again", options=ShardOptions(shard_size=4)).shards == index.shards


def test_files_that_are_no_images_are_left_out_if_asked(files, tmp_path):
    index = pack_images(files, tmp_path / "shards", check=decode_image, options=ShardOptions(workers=0))
    (name,) = index.skipped
    assert name.endswith("dog/1.png") and len(ShardedImages(tmp_path / "shards", files.transform)) == 6
    with pytest.raises(DataError, match="`pack_images` copies image files, and a DigitImages has none"):
        pack_images(DigitImages("heldout"), tmp_path / "other")
    with pytest.raises(DataError, match=r"holds images, not tokens\. Open it with ShardedImages"):
        ShardedTokens(tmp_path / "shards")


def test_a_record_without_a_label_is_unreadable(tmp_path):
    plan = ShardPlan(kind="images", fields={}, class_names=("a",), examples=1, shard_size=1)
    ShardWriter(tmp_path / "shards", plan).write(0, [b"no"], {})
    ShardWriter(tmp_path / "shards", plan).finish()
    with pytest.raises(UnreadableExample, match="a record of 2 bytes, not even a label"):
        ShardedImages(tmp_path / "shards", ImageTransform(8)).read(Visit(0))


def test_digits_of_a_grey_tokenizer(tmp_path):
    source, tokenizer = Pictures(4, channels=1), GreyLevels((SIZE, SIZE, 1), 256)
    precompute(source, tokenizer, tmp_path / "tokens", size=SIZE, views=Views.ONE)
    tokens = ShardedTokens(tmp_path / "tokens", tokenizer=tokenizer)
    np.testing.assert_array_equal(tokens[2].ids, source.pixels[2, ..., 0])


@pytest.mark.slow
def test_the_command_resumes_where_it_was_stopped(tmp_path, interruptible):
    save_tokenizer(tmp_path / "tokenizer", GreyLevels((SIZE, SIZE, 1), 17))
    script = Path(__file__).parents[1] / "examples" / "precompute.py"
    command = [sys.executable, str(script), "--data", "digits", "--tokenizer", "tokenizer", "--shard-size", "40"]
    command += ["--batch-size", "2", "--out", "tokens"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 120
        while not list(tmp_path.glob("tokens/shard-00000-*.array_record")):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 0 and "Run the same command again to resume" in output

    def run(*arguments):
        return subprocess.run([*command, *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=300)

    refused = run("--views", "one")
    assert refused.returncode != 0 and "views: saved 'flip', given 'one'" in refused.stderr
    finished = run()
    assert finished.returncode == 0 and "1437 examples (tokens) in 36 shards" in finished.stdout
    tokens, digits = ShardedTokens(tmp_path / "tokens", shape=(SIZE, SIZE)), load_digits("train")
    for row in (0, 700, 1436):
        levels = digits.images[row, ..., 0]
        views = {view.astype(np.uint16).tobytes() for view in (levels, levels[:, ::-1])}
        assert all_views(tokens, row, 2) == views and tokens[row].labels == digits.labels[row]
