"""Our metrics beside torchmetrics and pytorch-fid, where those are installed (`elt_zoo[parity]`)."""

import importlib
import warnings

import numpy as np
import pytest
from fixtures.rule import weights
from parity import relative_error
from test_evaluators import shapes_of
from weight_files import write_safetensors

from elt_zoo.metrics import (
    GaussianStatistics,
    InceptionExtractor,
    InceptionResize,
    frechet_distance,
    inception_score,
    load_statistics,
    precision_recall,
    set_statistics,
)
from elt_zoo.pretrained import load_inception

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install 'elt_zoo[parity]'")
with warnings.catch_warnings():
    # What their imports say of each other is not ours to mend.
    warnings.simplefilter("ignore")
    importlib.import_module("fixtures.torchvision_import").import_torchvision()
    reason = "torchmetrics is not installed: pip install 'elt_zoo[parity]'"
    fid = pytest.importorskip("torchmetrics.image.fid", reason=reason)
    inception = pytest.importorskip("torchmetrics.image.inception", reason=reason)

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")


class Identity(torch.nn.Module):
    """Takes features for images."""

    num_features = 12

    def forward(self, x):
        return x


def features(count, seed=0):
    rng = np.random.default_rng(seed)
    return 3.0 + rng.normal(size=(count, 12)) @ np.random.default_rng(99).normal(size=(12, 12)) + seed


@pytest.fixture(scope="module")
def pytorch_fid():
    """Its two modules."""
    reason = "pytorch-fid is not installed: pip install 'elt_zoo[parity]'"
    return [pytest.importorskip(f"pytorch_fid.{name}", reason=reason) for name in ("fid_score", "inception")]


def test_the_distance_is_that_of_pytorch_fid(pytorch_fid):
    a, b = features(200), features(150, seed=1)
    moments = [moment for x in (a, b) for moment in (x.mean(0), np.cov(x, rowvar=False))]
    expected = pytorch_fid[0].calculate_frechet_distance(*moments)
    assert frechet_distance(*map(GaussianStatistics.of, (a, b))) == pytest.approx(expected, rel=1e-6)


def test_the_distance_is_that_of_torchmetrics():
    a, b = features(200), features(150, seed=1)
    metric = fid.FrechetInceptionDistance(feature=Identity(), input_img_size=(12,))
    metric.set_dtype(torch.float64)
    for x, real in ((a, True), (b, False)):
        metric.update(torch.from_numpy(x), real=real)
    assert frechet_distance(*map(GaussianStatistics.of, (a, b))) == pytest.approx(float(metric.compute()), rel=1e-6)


def test_the_inception_score_is_that_of_torchmetrics():
    logits = features(240)
    metric = inception.InceptionScore(feature=Identity(), splits=1)
    metric.update(torch.from_numpy(logits))
    assert inception_score(logits, splits=1).mean == pytest.approx(float(metric.compute()[0]), rel=1e-9)
    # In parts, it shuffles; its order is that of the seed.
    metric = inception.InceptionScore(feature=Identity(), splits=8)
    metric.update(torch.from_numpy(logits))
    torch.manual_seed(0)
    mean, std = metric.compute()
    torch.manual_seed(0)
    ours = inception_score(logits[torch.randperm(240).numpy()], splits=8)
    assert ours.mean == pytest.approx(float(mean), rel=1e-9)
    # Theirs divides by one less.
    assert ours.std * (8 / 7) ** 0.5 == pytest.approx(float(std), rel=1e-9)


def test_precision_and_recall_are_those_of_all_distances():
    real, fake = (features(120, seed).astype(np.float32) for seed in (0, 1))

    def inside(points, centres):
        radii = torch.cdist(centres, centres).kthvalue(4, dim=1).values
        return float((torch.cdist(points, centres) <= radii).any(1).double().mean())

    a, b = (torch.from_numpy(x).double() for x in (real, fake))
    assert precision_recall(real, fake, chunk=50) == pytest.approx((inside(b, a), inside(a, b)))


@pytest.mark.slow
def test_features_and_files_are_those_of_pytorch_fid(pytorch_fid, tmp_path, monkeypatch):
    fid_score, networks = pytorch_fid
    tensors = weights(shapes_of("inception"), 9, 1.2)
    write_safetensors(tmp_path / "weights", tensors)
    norms = {name.removesuffix(".running_mean") for name in tensors if name.endswith(".running_mean")}
    state = {name: torch.from_numpy(np.asarray(value)) for name, value in tensors.items()}
    state |= {f"{name}.num_batches_tracked": torch.tensor(0) for name in norms}
    # In place of its download.
    monkeypatch.setattr(networks, "load_state_dict_from_url", lambda *_, **__: state)
    model = networks.InceptionV3([3]).eval()
    spatial = {}
    # The third part holds Mixed_5b and its successors.
    mixed_6d = model.blocks[2][6]
    mixed_6d.branch1x1.register_forward_hook(lambda _, __, output: spatial.update(value=output))
    pixels = np.random.default_rng(0).integers(0, 256, (6, 40, 56, 3)).astype(np.uint8)
    with torch.no_grad():
        pool = model(torch.from_numpy(pixels.transpose(0, 3, 1, 2) / np.float32(255.0)))[0][..., 0, 0].numpy()
    extractor = InceptionExtractor(
        load_inception(tmp_path / "weights"), resize=InceptionResize.PYTORCH_FID, batch_size=4
    )
    ours = extractor(pixels)
    assert relative_error(ours.pool, pool) < 1e-4
    # TensorFlow's mixed_6 is the block that six blocks from Mixed_5b on come before; row by row, channels last.
    expected = spatial["value"][:, :7].numpy().transpose(0, 2, 3, 1)
    assert expected.shape == (6, 17, 17, 7)
    assert relative_error(ours.spatial, expected.reshape(6, -1)) < 1e-4
    # With random weights all images look nearly alike; what sets them apart must agree too.
    for mine, other in ((ours.pool, pool), (ours.spatial, expected.reshape(6, -1))):
        assert relative_error(mine - mine.mean(0), other - other.mean(0)) < 1e-2
    assert relative_error(ours.logits, pool @ state["fc.weight"].numpy().T) < 1e-4
    # Ours are read by it, its files by us.
    statistics = set_statistics(extractor, [pixels[:1], pixels[1:]])
    statistics.save(tmp_path / "ours.npz")
    mean, covariance = fid_score.compute_statistics_of_path(str(tmp_path / "ours.npz"), None, 1, 2048, "cpu")
    assert relative_error(mean, pool.mean(0)) < 1e-4
    assert relative_error(covariance, np.cov(pool, rowvar=False)) < 1e-3
    np.savez_compressed(tmp_path / "theirs.npz", mu=pool.mean(0), sigma=np.cov(pool, rowvar=False))
    read = load_statistics(tmp_path / "theirs.npz", extractor=extractor.name)
    # Rounding, beside a distance to other images that is far from it.
    other = set_statistics(extractor, [255 - pixels])
    assert frechet_distance(read.pool, statistics.pool) < 1e-3 * frechet_distance(read.pool, other.pool)
