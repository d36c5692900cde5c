from ..storage import CONV_2D, Placement, prefixed
from ..tokenizers import VQ3DConfig, VQGANConfig


def vqgan_flax_names(config: VQGANConfig) -> list[Placement]:
    """Names of google-research/maskgit's VQGAN (Flax), and where each tensor goes in our model.

    Flax numbers layers of a kind in the order in which they are made, across levels.
    """
    return _flax_names(config.widths, config.num_res_blocks, config.num_res_blocks)


def vq3d_flax_names(config: VQ3DConfig) -> list[Placement]:
    """Names of google-research/magvit's 3D-VQ (Flax), and where each tensor goes in our model."""
    return _flax_names(config.widths, config.num_enc_res_blocks, config.num_dec_res_blocks)


def vqgan_torch_names(config: VQGANConfig) -> list[Placement]:
    """Names of the PyTorch port of MaskGIT's VQGAN (open-muse, 1d-tokenizer), and where each tensor goes in our model.

    It numbers the decoder's levels as the encoder's: level 0 comes last.
    """
    widths, last = config.widths, len(config.widths) - 1

    def conv(source: str, target: str, bias: bool = False) -> list[Placement]:
        rows = [Placement(f"{source}.weight", f"{target}.weight", CONV_2D)]
        return rows + [Placement(f"{source}.bias", f"{target}.bias")] * bias

    def norm(source: str, target: str) -> list[Placement]:
        return [Placement(f"{source}.{part}", f"{target}.{part}") for part in ("weight", "bias")]

    def block(source: str, target: str, changes: bool = False) -> list[Placement]:
        rows = norm("norm1", "norm1") + conv("conv1", "conv1") + norm("norm2", "norm2") + conv("conv2", "conv2")
        rows += conv("nin_shortcut", "shortcut") if changes else []
        return prefixed(rows, f"{source}.", f"{target}.")

    encoder = conv("conv_in", "conv_in") + norm("norm_out", "norm_out") + conv("conv_out", "conv_out", bias=True)
    decoder = conv("conv_in", "conv_in", bias=True) + norm("norm_out", "norm_out")
    decoder += conv("conv_out", "conv_out", bias=True)
    for index in range(config.num_res_blocks):
        encoder += block(f"mid.{index}", f"mid.{index}")
        decoder += block(f"mid.{index}", f"mid.{index}")
    for level, width in enumerate(widths):
        ours = last - level
        for index in range(config.num_res_blocks):
            narrower, wider = widths[max(level - 1, 0)], widths[min(level + 1, last)]
            down, up = f"down.{level}.block.{index}", f"up.{level}.block.{index}"
            encoder += block(down, f"levels.{level}.{index}", index == 0 and narrower != width)
            decoder += block(up, f"levels.{ours}.{index}", index == 0 and wider != width)
        if level > 0:
            decoder += conv(f"up.{level}.upsample_conv", f"upsamples.{ours}.conv", bias=True)
    codebook = Placement("quantize.embedding.weight", "codebook")
    return [*prefixed(encoder, "encoder.", "encoder."), *prefixed(decoder, "decoder.", "decoder."), codebook]


def _flax_names(widths: tuple[int, ...], num_enc_res_blocks: int, num_dec_res_blocks: int) -> list[Placement]:
    last = len(widths) - 1
    encoder = _conv("Conv_0", "conv_in") + _norm("GroupNorm_0", "norm_out") + _conv("Conv_1", "conv_out", bias=True)
    number = 0
    for level, width in enumerate(widths):
        for index in range(num_enc_res_blocks):
            changes = index == 0 and widths[max(level - 1, 0)] != width
            encoder += _block(number, f"levels.{level}.{index}", changes)
            number += 1
    for index in range(num_enc_res_blocks):
        encoder += _block(number + index, f"mid.{index}", False)
    decoder = _conv("Conv_0", "conv_in", bias=True) + _norm("GroupNorm_0", "norm_out")
    decoder += _conv(f"Conv_{last + 1}", "conv_out", bias=True)
    for index in range(num_dec_res_blocks):
        decoder += _block(index, f"mid.{index}", False)
    number = num_dec_res_blocks
    for level, width in enumerate(reversed(widths)):
        for index in range(num_dec_res_blocks):
            changes = index == 0 and widths[min(last - level + 1, last)] != width
            decoder += _block(number, f"levels.{level}.{index}", changes)
            number += 1
        if level < last:
            decoder += _conv(f"Conv_{level + 1}", f"upsamples.{level}.conv", bias=True)
    codebook = Placement("quantizer/codebook", "codebook")
    return [*prefixed(encoder, "encoder/", "encoder."), *prefixed(decoder, "decoder/", "decoder."), codebook]


def _block(number: int, target: str, changes: bool) -> list[Placement]:
    rows = [*_norm("GroupNorm_0", "norm1"), *_conv("Conv_0", "conv1")]
    rows += [*_norm("GroupNorm_1", "norm2"), *_conv("Conv_1", "conv2")]
    rows += _conv("Conv_2", "shortcut") if changes else []
    return prefixed(rows, f"ResBlock_{number}/", f"{target}.")


def _conv(source: str, target: str, bias: bool = False) -> list[Placement]:
    # Flax's kernels have our axes.
    rows = [Placement(f"{source}/kernel", f"{target}.weight")]
    return rows + [Placement(f"{source}/bias", f"{target}.bias")] * bias


def _norm(source: str, target: str) -> list[Placement]:
    return [Placement(f"{source}/scale", f"{target}.weight"), Placement(f"{source}/bias", f"{target}.bias")]
