"""Folders of shards: what is written is read, and nothing else is."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from shard_files import EXAMPLES, contents, ids_of, token_plan, token_records, write

from elt_zoo.data import (
    DataError,
    ShardedLatents,
    ShardedTokens,
    UnreadableExample,
    UnreadableLog,
    Visit,
    open_shards,
    sample_latents,
    training_batches,
)
from elt_zoo.data.shards._fingerprint import fingerprint
from elt_zoo.data.shards._index import ShardPlan
from elt_zoo.data.shards._source import draw_views
from elt_zoo.data.shards._write import Skipped
from elt_zoo.tokenizers import GreyLevels, PatchCodebook


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokens") / "shards"
    write(folder, token_plan())
    return folder


@pytest.fixture
def folder(written, tmp_path):
    return shutil.copytree(written, tmp_path / "shards")


def test_every_record_comes_back(written):
    index = open_shards(written)
    assert [shard.examples for shard in index.shards] == [16, 16, 16, 2] and len(index) == EXAMPLES
    assert index.plan == token_plan() and not index.skipped
    source = ShardedTokens(written, shape=(3, 3))
    assert (len(source), source.class_names, source.codebook_size) == (EXAMPLES, ("cat", "dog", "owl"), 1024)
    seen = set()
    for epoch in range(8):
        for row in range(EXAMPLES):
            example = source.read(Visit(row, epoch))
            (view,) = [view for view in range(2) if (example.ids == ids_of(row)[view]).all()]
            assert example.labels == row % 3 and example.labels.shape == () and example.ids.dtype == np.uint16
            seen.add((row, view))
    assert len(seen) == 2 * EXAMPLES
    assert sorted(path.name for path in written.iterdir()) == [
        "index.json",
        *(f"shard-0000{number}-of-00004.array_record" for number in range(4)),
    ]
    assert source.name(17).endswith("shard-00001-of-00004.array_record, record 1")


def test_batches_are_the_single_examples(written):
    source = ShardedTokens(written)
    visits = [Visit(row, epoch, 7) for row, epoch in [(3, 0), (49, 2), (3, 1), (16, 0)]]
    batch = source.read_batch(visits)
    for place, visit in enumerate(visits):
        one = source.read(visit)
        np.testing.assert_array_equal(batch.ids[place], one.ids)
        assert batch.labels[place] == one.labels


def _splitmix64(state):
    state = (state + 0x9E3779B97F4A7C15) % 2**64
    state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    state = (state ^ (state >> 27)) * 0x94D049BB133111EB % 2**64
    return state ^ (state >> 31)


def test_views_are_drawn_evenly_and_independently():
    def views(index, epoch, seed, count):
        visits = np.stack(np.broadcast_arrays(np.atleast_1d(index), epoch, seed), axis=-1).astype(np.uint64)
        return draw_views(visits, count)

    rows = np.arange(20000)
    drawn = views(rows, 0, 0, 10)
    np.testing.assert_allclose(np.bincount(drawn) / len(rows), np.full(10, 0.1), atol=0.01)
    for other in (views(rows, 1, 0, 10), views(rows, 0, 1, 10), views(rows + 1, 0, 0, 10)):
        assert abs(np.mean(drawn == other) - 0.1) < 0.01
    # Python's integers, which do not wrap by themselves.
    assert _splitmix64(0) == 0xE220A8397B1DCDAF  # published
    assert views(5, 3, 11, 2**63).item() == _splitmix64(_splitmix64(_splitmix64(5) ^ 3) ^ 11) % 2**63
    np.testing.assert_array_equal(views(rows, 0, 0, 1), np.zeros(len(rows), np.int64))


@pytest.mark.parametrize("workers", [0, 2])
def test_streams_agree_for_any_number_of_processes_and_workers(written, workers):
    source = ShardedTokens(written)

    def stream(batch_size, index=0, count=1):
        return training_batches(
            source, batch_size=batch_size, seed=5, process_index=index, process_count=count, workers=workers
        )

    one, parts = stream(8), [stream(2, index, 4) for index in range(4)]
    for _ in range(14):  # past an epoch, in which neither 8 nor 4 divides 50
        whole, batches = next(one), [next(part) for part in parts]
        np.testing.assert_array_equal(whole.ids, np.concatenate([batch.ids for batch in batches]))
        np.testing.assert_array_equal(whole.labels, np.concatenate([batch.labels for batch in batches]))


def test_a_restored_stream_goes_on_with_another_number_of_workers(written):
    source = ShardedTokens(written)
    batches = training_batches(source, batch_size=8, seed=0, workers=0)
    for _ in range(9):
        next(batches)
    position, expected = batches.get_state(), [next(batches) for _ in range(8)]
    restored = training_batches(source, batch_size=8, seed=0, workers=2)
    restored.set_state(position)
    for batch in expected:
        again = next(restored)
        np.testing.assert_array_equal(again.ids, batch.ids)
        np.testing.assert_array_equal(again.labels, batch.labels)


def test_a_damaged_record_is_named_and_replaced(folder):
    file = folder / "shard-00001-of-00004.array_record"
    content, place = bytearray(file.read_bytes()), file.read_bytes().find(ids_of(20).tobytes())
    content[place] ^= 1
    file.write_bytes(content)
    source = ShardedTokens(folder)
    with pytest.raises(UnreadableExample, match=r"00001-of-00004\.array_record, record 4 is damaged: .*hash mismatch"):
        source.read(Visit(20))
    # Its neighbours and later reads of the same file are not affected.
    np.testing.assert_array_equal(source.read(Visit(21)).labels, 0)
    unreadable = UnreadableLog(limit=1)
    batches = training_batches(source, batch_size=10, seed=0, unreadable=unreadable)
    labels = np.concatenate([next(batches).labels for _ in range(5)])
    assert np.bincount(labels).tolist() == [18, 17, 15] and len(unreadable.names) == 1  # 21 in place of 20


def test_a_record_of_another_length_is_refused(tmp_path):
    plan = token_plan(examples=3)

    write(tmp_path / "shards", plan, lambda rows: iter([[b"short"] * 3]))
    with pytest.raises(UnreadableExample, match="record 0 or another of its batch has the wrong length"):
        ShardedTokens(tmp_path / "shards").read(Visit(0))


def test_files_that_do_not_match_the_index_are_refused_and_made_anew(folder):
    before = contents(folder)
    (folder / "shard-00002-of-00004.array_record").unlink()
    (folder / "shard-00000-of-00004.array_record").write_bytes(b"short")
    with pytest.raises(
        DataError,
        match=r"(?s)2 of the 4 shards in .* do not match its index:\n  shard-00000-of-00004\.array_record has 5 bytes, "
        r"and should have \d+ bytes\n  shard-00002-of-00004\.array_record is missing.*Run what wrote them again",
    ):
        ShardedTokens(folder)
    write(folder, token_plan())
    assert contents(folder) == before


def test_a_file_of_another_count_is_refused_when_it_is_read(folder):
    index = json.loads((folder / "index.json").read_text())
    index["shards"][1]["examples"] = 15
    (folder / "index.json").write_text(json.dumps(index))
    with pytest.raises(UnreadableExample, match="has 16 records, but its index says 15"):
        ShardedTokens(folder).read(Visit(20))


def edit(**changes):
    def change(index):
        index["plan"] |= changes

    return change


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda index: index.update(format_version=2), "has format version 2; this elt_zoo reads up to 1"),
        (lambda index: index.update(shards=None), "are incomplete. Run what writes them again"),
        (lambda index: index["shards"].pop(), "lists 3 shards, but 50 examples make 4"),
        (lambda index: index.pop("plan"), r"is not an index of shards: KeyError\('plan'\)"),
        (edit(views="mirror"), "'mirror' is not a valid Views"),
        (edit(shard_size=0), "shard_size is 0"),
        (edit(fields={"ids": ["nonsense", [2, 3, 3]]}), "is not an index of shards: TypeError"),
        (edit(surprise=1), "unexpected keyword argument 'surprise'"),
        (edit(kind="latents"), "holds latents, not tokens. Open it with ShardedLatents"),
    ],
)
def test_an_edited_index_is_refused(folder, change, text):
    index = json.loads((folder / "index.json").read_text())
    change(index)
    (folder / "index.json").write_text(json.dumps(index))
    with pytest.raises(DataError, match=text):
        ShardedTokens(folder)


def test_a_folder_without_an_index_and_half_an_index_are_refused(folder, tmp_path):
    text = (folder / "index.json").read_text()
    (folder / "index.json").write_text(text[: len(text) // 2])
    with pytest.raises(DataError, match=r"index\.json is damaged.*write the shards again"):
        open_shards(folder)
    with pytest.raises(DataError, match=r"holds no shards: it has no index\.json"):
        open_shards(tmp_path / "nowhere")


def test_tokens_of_another_size_or_tokenizer_are_refused(tmp_path):
    grey = GreyLevels((3, 3, 1), 17)
    write(tmp_path / "shards", token_plan(fingerprint=fingerprint(grey)))
    ShardedTokens(tmp_path / "shards", tokenizer=grey, shape=(3, 3))
    with pytest.raises(DataError, match=r"of shape \(3, 3\), made from images of \(12, 12, 3\), but \(16, 16\) was"):
        ShardedTokens(tmp_path / "shards", shape=(16, 16))
    with pytest.raises(DataError, match=r"made with another tokenizer: its fingerprint is .* Load the tokenizer that"):
        ShardedTokens(tmp_path / "shards", tokenizer=GreyLevels((3, 3, 1), 16))


def test_fingerprints_tell_tokenizers_apart():
    codes = jnp.arange(48, dtype=jnp.float32).reshape(4, 12)
    one = PatchCodebook(codes, (8, 8, 3), 2)
    assert fingerprint(one) == fingerprint(PatchCodebook(jnp.array(codes), (8, 8, 3), 2))
    others = [
        PatchCodebook(codes.at[0, 0].add(1e-6), (8, 8, 3), 2),
        PatchCodebook(codes, (4, 8, 3), 2),
        PatchCodebook(codes.astype(jnp.bfloat16), (8, 8, 3), 2),
        GreyLevels((8, 8, 1), 4),
        GreyLevels((8, 8, 1), 5),
    ]
    assert len({fingerprint(tokenizer) for tokenizer in [one, *others]}) == 6


class Interrupted(Exception):
    pass


def interrupt_at(count):
    def on_progress(progress):
        if progress.done >= count:
            raise Interrupted

    return on_progress


def test_an_interrupted_writer_resumes_with_what_is_complete(written, tmp_path):
    folder, plan = tmp_path / "shards", token_plan()
    with pytest.raises(Interrupted):
        write(folder, plan, on_progress=interrupt_at(40))
    # Two complete shards, and nothing of the third.
    assert sorted(path.suffix for path in folder.iterdir()) == [".array_record"] * 2 + [".json"] * 3
    with pytest.raises(DataError, match="incomplete"):
        ShardedTokens(folder)
    kept = (folder / plan.file_name(0)).stat()
    made, records = [], token_records(plan)

    def noted(rows):
        made.append(rows)
        return records(rows)

    progress = []
    assert write(folder, plan, noted, on_progress=progress.append) == open_shards(folder)
    assert made == [range(32, 48), range(48, 50)]
    assert (progress[0].done, progress[-1].done, progress[-1].total) == (32, 50, 50)
    assert (folder / plan.file_name(0)).stat().st_mtime_ns == kept.st_mtime_ns
    assert contents(folder) == contents(written)
    # There is nothing left to do.
    assert write(folder, plan, noted) == open_shards(folder) and len(made) == 2


def test_processes_share_the_work(written, tmp_path):
    folder, plan = tmp_path / "shards", token_plan()
    assert write(folder, plan, process_index=1, process_count=3) is None
    assert write(folder, plan, process_index=0, process_count=3) is None
    assert write(folder, plan, process_index=2, process_count=3) == open_shards(folder)
    assert contents(folder) == contents(written)


def test_folders_of_other_shards_are_refused_and_not_changed(folder, tmp_path):
    before = contents(folder)
    with pytest.raises(
        DataError, match=r"(?s)codebook_size: saved 1024, given 16.*fingerprint: saved '000.*not"
    ) as told:
        write(folder, token_plan(fingerprint="f" * 64, codebook_size=16, description={"data": "imagenet"}))
    assert "description.data: saved '(missing)', given 'imagenet'" in str(told.value)
    assert contents(folder) == before
    other = tmp_path / "other"
    other.mkdir()
    (other / "notes.txt").write_text("mine")
    with pytest.raises(DataError, match=r"is not empty and holds no shards\. Choose another folder; nothing was"):
        write(other, token_plan())
    assert contents(other) == {"notes.txt": b"mine"}


def test_a_folder_without_any_readable_example_is_refused(tmp_path):
    def entries(rows):
        yield [Skipped(str(row), UnreadableExample("gone")) for row in rows]

    with pytest.raises(DataError, match=r"None of the 50 examples for .* could be read"):
        write(tmp_path / "shards", token_plan(), entries)


def test_latents_come_back_and_are_drawn_anew(tmp_path):
    generator = np.random.default_rng(0)
    mean, log_variance = generator.normal(0.0, 4.0, (8, 1, 2, 2, 4)), generator.uniform(-30.0, 20.0, (8, 1, 2, 2, 4))
    field = ("<f2", (1, 2, 2, 4))
    plan = ShardPlan(
        kind="latents", fields={"mean": field, "log_variance": field}, class_names=("a",), examples=8, shard_size=8
    )

    def entries(rows):
        for row in rows:
            record = np.zeros((), plan.record)
            record["mean"], record["log_variance"] = mean[row], log_variance[row]
            yield [record.tobytes()]

    write(tmp_path / "shards", plan, entries)
    source = ShardedLatents(tmp_path / "shards", shape=(2, 2, 4))
    batch = source.read_batch([Visit(row) for row in range(8)])
    # Half of the distance between neighbours in float16.
    np.testing.assert_allclose(np.float64(batch.mean), mean[:, 0], rtol=2.0**-11)
    np.testing.assert_allclose(np.float64(batch.log_variance), log_variance[:, 0], rtol=2.0**-11)
    draws = [sample_latents(batch, scale=0.5, key=jax.random.key(seed)).examples for seed in (0, 0, 1)]
    np.testing.assert_array_equal(draws[0], draws[1])
    assert float(jnp.abs(draws[0] - draws[2]).max()) > 1.0
    noise = jax.random.normal(jax.random.key(1), (8, 2, 2, 4))
    expected = 0.5 * (mean[:, 0] + np.exp(0.5 * log_variance[:, 0]) * np.float64(noise))
    np.testing.assert_allclose(np.float64(draws[2]), expected, rtol=0.01, atol=0.01)
    with pytest.raises(DataError, match="holds latents, not tokens"):
        ShardedTokens(tmp_path / "shards")
