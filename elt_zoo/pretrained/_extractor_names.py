from ..metrics import I3D, InceptionV3
from ..storage import CONV_2D, CONV_3D, Placement


def inception_names(network: InceptionV3) -> list[Placement]:
    """Names of pytorch-fid's `pt_inception-2015-12-05-6726825d.pth`, and where each tensor goes in our network, which
    may be abstract.
    """
    rows = [Placement("fc.weight", "fc.weight"), Placement("fc.bias", "fc.bias")]
    for name in network.convs:
        rows.append(Placement(f"{name}.conv.weight", f"convs.{name}.conv.weight", CONV_2D))
        rows += _norm_names(f"{name}.bn", f"convs.{name}")
    return rows


def i3d_names(network: I3D) -> list[Placement]:
    """Names of the PyTorch port's `model_rgb.pth` (hassony2/kinetics_i3d_pytorch), and where each tensor goes in our
    network, which may be abstract.
    """
    rows = [
        Placement("conv3d_0c_1x1.conv3d.weight", "classifier.weight", CONV_3D),
        Placement("conv3d_0c_1x1.conv3d.bias", "classifier.bias"),
    ]
    for name in network.convs:
        rows.append(Placement(f"{name}.conv3d.weight", f"convs.{name}.conv.weight", CONV_3D))
        rows += _norm_names(f"{name}.batch3d", f"convs.{name}")
    return rows


def _norm_names(source: str, target: str) -> list[Placement]:
    """Rows of PyTorch's batch normalisation."""
    parts = {"weight": "weight", "bias": "bias", "running_mean": "mean", "running_var": "variance"}
    return [Placement(f"{source}.{theirs}", f"{target}.{ours}") for theirs, ours in parts.items()]
