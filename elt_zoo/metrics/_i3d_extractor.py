import dataclasses
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, UInt8

from .._checks import checked
from ._extractor import AbstractExtractor, BatchedNetwork, Features, fingerprint
from ._i3d import I3D, resize_video
from ._inception_extractor import as_bytes, check_finite

Clips = (
    UInt8[np.ndarray | Array, "examples frames height width 3"]
    | Float[np.ndarray | Array, "examples frames height width 3"]
)


@dataclasses.dataclass(frozen=True)
class VideoProtocol:
    """The settings that two Fréchet video distances must share to be comparable.

    **Fields:**

    - `name`: name of the protocol.
    - `frames`: frames of a clip.
    - `stride`: step between the frames of a clip, in frames of the video.
    - `resolution`: height and width of the clips that are compared, before I3D's own resizing.
    - `split`: the real videos that are the reference.
    - `samples`: number of generated clips, and of real ones.
    - `repeats`: number of disjoint sets to average the distance over.
    - `half_pixel`: how clips are resized to 224 × 224, see [`resize_video`][elt_zoo.metrics.resize_video].
    - `round_to_bytes`: whether generated clips are rounded to bytes first.
    """

    name: str
    frames: int
    stride: int
    resolution: int
    split: str
    samples: int
    repeats: int
    half_pixel: bool
    round_to_bytes: bool

    @classmethod
    def magvit(cls) -> "VideoProtocol":
        """UCF-101 as MAGVIT measures it ([2212.05199](https://arxiv.org/abs/2212.05199), and the evaluation
        code of its repository), and ELT after it.
        """
        return cls(
            name="magvit",
            frames=16,
            stride=1,
            resolution=128,
            split="train (9,537 videos)",
            samples=10_000,
            repeats=4,
            half_pixel=False,
            round_to_bytes=False,
        )

    @classmethod
    def stylegan_v(cls) -> "VideoProtocol":
        """UCF-101 as StyleGAN-V measures FVD₁₆ ([2112.14683](https://arxiv.org/abs/2112.14683), and its
        repository). The reference is one clip, at a random position, of each of 2,048 training videos.
        """
        return cls(
            name="stylegan-v",
            frames=16,
            stride=1,
            resolution=256,
            split="train and test (13,320 videos)",
            samples=2048,
            repeats=1,
            half_pixel=True,
            round_to_bytes=True,
        )


class I3DExtractor(AbstractExtractor):
    """The features of the Fréchet video distance ([1812.01717](https://arxiv.org/abs/1812.01717)): I3D's 400
    logits of Kinetics-400, averaged over time.

    Published distances use the weights of TensorFlow hub's `deepmind/i3d-kinetics-400`, or copies of them. The weights
    of kinetics_i3d_pytorch come from another release of the same network: distances with them rank models, but do not
    compare with papers. A hash of the weights is part of the extractor's name. The Inception score of videos needs
    another network (C3D fitted to UCF-101), which the library does not have.
    """

    distance: ClassVar[str] = "FVD"

    def __init__(
        self,
        network: I3D,
        protocol: VideoProtocol,
        *,
        batch_size: int = 16,
        mesh: Mesh | None = None,
    ):
        """**Arguments:**

        - `network`: with its published weights, see [`load_i3d`][elt_zoo.pretrained.load_i3d].
        - `protocol`: how clips are prepared. To change a field use `dataclasses.replace`, and change the name too.
        - `batch_size`: clips at a time; smaller batches are padded.
        - `mesh`: of the devices that share a batch, by default all of this process.

        **Raises:** `ValueError` if the devices do not divide a batch.
        """
        self.name = f"i3d-kinetics-400 logits, {protocol.name} protocol, weights {fingerprint(network)}"
        self.num_features = network.classifier.weight.shape[-1]
        self.protocol = protocol

        def features(network: I3D, clip: Array) -> Array:
            pixels = clip.astype(jnp.float32)
            pixels = pixels / 127.5 - 1.0 if clip.dtype == jnp.uint8 else pixels
            return network(resize_video(pixels, half_pixel=protocol.half_pixel)).logits

        self._run = BatchedNetwork(network, features, batch_size=batch_size, mesh=mesh)

    @property
    def description(self) -> dict[str, Any]:
        """The protocol's name and how it prepares clips. The numbers of clips are those of the
        [`Evaluation`][elt_zoo.metrics.Evaluation], whatever the protocol asks for.
        """
        fields = ("name", "frames", "stride", "resolution", "half_pixel", "round_to_bytes")
        return {name: getattr(self.protocol, name) for name in fields}

    @checked
    def __call__(self, examples: Clips) -> Features:
        """**Arguments:** `examples`: clips of the protocol's length and resolution, uint8 or in [−1, 1] (values outside
        are clipped).

        **Returns:** 400 pooled features of each.

        **Raises:** `ValueError` for clips of another size, pixels that are not finite, or no clips.
        """
        protocol = self.protocol
        expected = (protocol.frames, protocol.resolution, protocol.resolution, 3)
        if examples.shape[1:] != expected:
            raise ValueError(
                f"The protocol {protocol.name!r} compares clips of shape {expected}; got {examples.shape[1:]}. Cut and "
                "resize them as the protocol says, or describe your own with `dataclasses.replace`."
            )
        clips = np.asarray(examples)
        if protocol.round_to_bytes:
            clips = as_bytes(clips)
        elif clips.dtype != np.uint8:
            check_finite(clips)
            clips = np.clip(clips, -1.0, 1.0).astype(np.float32)
        return Features(self._run(clips))
