"""Statistics of feature vectors: streams, files, and whose features they are."""

import dataclasses
import io
import zipfile
from typing import Any

import jax
import numpy as np
import pytest
from extractors import MeansExtractor, images
from jax.sharding import Mesh

from elt_zoo.metrics import (
    GaussianStatistics,
    SetStatistics,
    StreamingStatistics,
    frechet_distance,
    load_statistics,
    read_images,
    reference_statistics,
    set_statistics,
)


def features(count, length=6, seed=0):
    rng = np.random.default_rng(seed)
    return 1e3 + rng.normal(size=(count, length)) @ rng.normal(size=(length, length))


def assert_same(a, b, rtol=1e-9):
    assert a.count == b.count and a.extractor == b.extractor
    np.testing.assert_allclose(a.mean, b.mean, rtol=rtol)
    np.testing.assert_allclose(a.covariance, b.covariance, rtol=rtol, atol=rtol * np.abs(b.covariance).max())


@pytest.mark.parametrize("sizes", [[50], [1] * 50, [3, 40, 7], [49, 1]])
def test_a_stream_has_the_statistics_of_its_whole(sizes):
    # Far from the origin, where sums of squares in one pass lose every digit.
    whole, stream = features(50), StreamingStatistics("x")
    for part in np.split(whole, np.cumsum(sizes)[:-1]):
        stream.add(part)
    assert_same(stream.result(), GaussianStatistics.of(whole, "x"))
    # Asking does not end the stream.
    stream.add(features(9, seed=1))
    assert_same(stream.result(), GaussianStatistics.of(np.concatenate([whole, features(9, seed=1)]), "x"))


def test_extractors_run_over_ragged_batches_without_compiling_again():
    whole = images(21)
    extractor = MeansExtractor(batch_size=8)
    at_once = extractor(whole)
    in_parts = [extractor(part) for part in np.split(whole, [1, 12, 13])]
    for name in ("pool", "spatial", "logits"):
        joined = np.concatenate([getattr(part, name) for part in in_parts])
        np.testing.assert_array_equal(joined, getattr(at_once, name))
    np.testing.assert_allclose(at_once.pool, whole.mean((1, 2)) / 255, rtol=1e-5)
    assert extractor.traces == 1
    # Four devices, or one of them.
    one = MeansExtractor(batch_size=3, mesh=Mesh(np.asarray(jax.devices()[:1]), ("data",)))
    np.testing.assert_array_equal(one(whole).pool, at_once.pool)
    with pytest.raises(ValueError, match=r"`batch_size=6` cannot be shared by 4 device"):
        MeansExtractor(batch_size=6)
    with pytest.raises(ValueError, match="There are no examples in this batch"):
        extractor(whole[:0])


def test_sets_merge_over_processes_and_files(tmp_path):
    whole, extractor = images(30), MeansExtractor()
    expected = set_statistics(extractor, [whole], keep=True)
    for rank, part in enumerate(np.split(whole, [4, 20])):
        set_statistics(extractor, np.split(part, [2]), keep=True).save(tmp_path / f"{rank}.npz")
    merged = load_statistics(tmp_path / "0.npz")
    for rank in (1, 2):
        merged = merged.merge(load_statistics(tmp_path / f"{rank}.npz", extractor="means"))
    assert_same(merged.pool, expected.pool)
    assert_same(merged.spatial, expected.spatial)
    np.testing.assert_array_equal(merged.features, expected.features)
    np.testing.assert_array_equal(merged.logits, expected.logits)
    small = set_statistics(extractor, [whole])
    assert small.features is None and merged.merge(small).features is None


def test_our_files_are_those_of_pytorch_fid_too(tmp_path):
    path = tmp_path / "statistics"
    ours = set_statistics(MeansExtractor(), [images(9)])
    ours.save(path)
    assert [file.name for file in tmp_path.iterdir()] == ["statistics"]
    with np.load(path) as values:
        np.testing.assert_array_equal(values["mu"], ours.pool.mean)
        np.testing.assert_array_equal(values["sigma_s"], ours.spatial.covariance)
    with pytest.raises(FileExistsError, match="statistics exists already"):
        ours.save(path)
    set_statistics(MeansExtractor(), [images(5)]).save(path, overwrite=True)
    assert load_statistics(path).pool.count == 5


def test_files_of_others_need_to_be_told_their_extractor(tmp_path):
    pool, spatial = GaussianStatistics.of(features(20, 3)), GaussianStatistics.of(features(20, 4))
    np.savez_compressed(tmp_path / "fid.npz", mu=pool.mean, sigma=pool.covariance)
    with pytest.raises(ValueError, match="does not say which extractor its statistics come from"):
        load_statistics(tmp_path / "fid.npz")
    read = load_statistics(tmp_path / "fid.npz", extractor="means")
    assert read.pool.extractor == "means" and read.pool.count is None and read.spatial is None
    named = dataclasses.replace(pool, extractor="means")
    assert frechet_distance(read.pool, named) < 1e-9
    with pytest.raises(ValueError, match="without their number of examples"):
        read.pool.merge(named)
    # ADM's: statistics of all, and images of some.
    adm: dict[str, Any] = {
        "mu": pool.mean,
        "sigma": pool.covariance,
        "mu_s": spatial.mean,
        "sigma_s": spatial.covariance,
    }
    np.savez(tmp_path / "adm.npz", arr_0=images(10), mu_clip=np.zeros(2), **adm)
    extractor = MeansExtractor()
    reference = reference_statistics(tmp_path / "adm.npz", extractor, batch_size=4)
    np.testing.assert_array_equal(reference.pool.mean, pool.mean)
    np.testing.assert_array_equal(reference.spatial.covariance, spatial.covariance)
    np.testing.assert_array_equal(reference.features, extractor(images(10)).pool)
    # Without images it is the statistics alone, and without statistics those of its images.
    assert reference_statistics(tmp_path / "fid.npz", extractor).features is None
    np.savez_compressed(tmp_path / "samples.npz", images(10))
    assert_same(
        reference_statistics(tmp_path / "samples.npz", extractor, batch_size=4).pool,
        set_statistics(extractor, [images(10)]).pool,
    )


def test_images_are_read_in_batches(tmp_path):
    np.savez_compressed(tmp_path / "samples.npz", images(10))
    batches = list(read_images(tmp_path / "samples.npz", batch_size=4))
    assert [len(batch) for batch in batches] == [4, 4, 2]
    np.testing.assert_array_equal(np.concatenate(batches), images(10))


def list_of_images(path):
    return list(read_images(path))


def npz(path, **arrays):
    np.savez(path, **arrays)
    return path


def test_files_that_hold_something_else_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="Reference files of ImageNet and LSUN are listed at"):
        load_statistics(tmp_path / "none.npz")
    (tmp_path / "text.npz").write_text("mu")
    with pytest.raises(ValueError, match="is no npz file, or a damaged one"):
        load_statistics(tmp_path / "text.npz")
    with pytest.raises(ValueError, match=r"holds no statistics.*use `reference_statistics`"):
        load_statistics(npz(tmp_path / "a.npz", arr_0=images(2)))
    mu, sigma = np.zeros(3), np.eye(3)
    with pytest.raises(ValueError, match=r"mu is of shape \(3,\) and sigma of \(2, 2\)"):
        load_statistics(npz(tmp_path / "b.npz", mu=mu, sigma=np.eye(2)), extractor="x")
    with pytest.raises(ValueError, match="mu or sigma hold values that are not finite"):
        load_statistics(npz(tmp_path / "c.npz", mu=mu, sigma=np.nan * sigma), extractor="x")
    with pytest.raises(ValueError, match="mu cannot be read"):
        load_statistics(npz(tmp_path / "d.npz", mu=np.asarray([None]), sigma=sigma), extractor="x")
    future = {"format": "elt_zoo statistics", "version": 2, "extractor": "x", "mu": mu, "sigma": sigma}
    with pytest.raises(ValueError, match="format version 2; this library reads up to 1"):
        load_statistics(npz(tmp_path / "e.npz", **future))
    with pytest.raises(ValueError, match="statistics of the extractor 'x', not of 'y'"):
        load_statistics(npz(tmp_path / "f.npz", **future | {"version": 1}), extractor="y")
    with pytest.raises(ValueError, match=r"holds no images: .* float64"):
        next(read_images(npz(tmp_path / "g.npz", arr_0=np.zeros((2, 4, 4, 3)))))
    with zipfile.ZipFile(tmp_path / "h.npz", "w") as archive:
        archive.writestr("arr_0.npy", b"no array")
    with pytest.raises(ValueError, match=r"arr_0\.npy is no NumPy array"):
        next(read_images(tmp_path / "h.npz"))
    for name, read in (("b.npz", lambda path: load_statistics(path, extractor="x")), ("a.npz", list_of_images)):
        content = (tmp_path / name).read_bytes()
        # The header of the first entry, and the number of the way that it is packed in.
        for place in (0, content.index(b"PK\x01\x02") + 10):
            (tmp_path / name).write_bytes(content[:place] + b"\x55" + content[place + 1 :])
            with pytest.raises(ValueError, match=rf"{name}"):
                read(tmp_path / name)
    content = io.BytesIO()
    np.save(content, images(4))
    with zipfile.ZipFile(tmp_path / "i.npz", "w") as archive:
        archive.writestr("arr_0.npy", content.getvalue()[:-50])
    with pytest.raises(ValueError, match="is cut short: image 2 of 4 is missing"):
        list(read_images(tmp_path / "i.npz", batch_size=2))


def test_wrong_statistics_are_named():
    a, b = (GaussianStatistics.of(features(20), name) for name in "ab")
    with pytest.raises(ValueError, match="statistics of the extractors 'a' and 'b'"):
        frechet_distance(a, b)
    with pytest.raises(ValueError, match="statistics of the extractors 'a' and 'b'"):
        SetStatistics(a).merge(SetStatistics(b))
    with pytest.raises(ValueError, match="the stream of samples was empty"):
        set_statistics(MeansExtractor(), [])
    stream = StreamingStatistics()
    stream.add(features(2))
    with pytest.raises(ValueError, match="Features of length 5 after those of 6"):
        stream.add(features(2, 5))
    with pytest.raises(ValueError, match="not finite"):
        stream.add(np.full((2, 6), np.inf))
