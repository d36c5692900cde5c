from ..storage import CONV_2D, Placement, prefixed
from ..tokenizers import AutoencoderKLConfig

_NEW_ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
_OLD_ATTENTION = ("query", "key", "value", "proj_attn")


def autoencoder_kl_names(config: AutoencoderKLConfig, *, old_attention: bool = False) -> list[Placement]:
    """Names of diffusers' `AutoencoderKL`, and where each tensor goes in our model.

    **Arguments:** `config`: the sizes; `old_attention`: whether the file has the names that diffusers gave attention
    until 2023 (`query`, `proj_attn`, …).
    """
    widths = config.block_out_channels
    attention = _OLD_ATTENTION if old_attention else _NEW_ATTENTION
    encoder = [*_ends(), *_middle(widths[-1], attention)]
    decoder = [*_ends(), *_middle(widths[-1], attention)]
    for level in range(len(widths)):
        down, up = f"down_blocks.{level}", f"up_blocks.{level}"
        encoder += _level(down, level, widths, config.layers_per_block)
        decoder += _level(up, level, widths[::-1], config.layers_per_block + 1)
        if level + 1 < len(widths):
            encoder += _conv(f"{down}.downsamplers.0.conv", f"downsamples.{level}")
            decoder += _conv(f"{up}.upsamplers.0.conv", f"upsamples.{level}.conv")
    return [
        *prefixed(encoder, "encoder.", "encoder."),
        *prefixed(decoder, "decoder.", "decoder."),
        *_conv("quant_conv", "quant_conv"),
        *_conv("post_quant_conv", "post_quant_conv"),
    ]


def _ends() -> list[Placement]:
    return [*_conv("conv_in", "conv_in"), *_same("conv_norm_out", "norm_out"), *_conv("conv_out", "conv_out")]


def _middle(width: int, attention: tuple[str, ...]) -> list[Placement]:
    query, key, value, out = attention
    rows = [*_same("group_norm", "norm"), *_same(out, "attention.out")]
    for index, name in enumerate((query, key, value)):
        rows += _same(name, "attention.qkv", (slice(index * width, (index + 1) * width),))
    return [
        *prefixed(_block(), "mid_block.resnets.0.", "mid.block1."),
        *prefixed(rows, "mid_block.attentions.0.", "mid.attention."),
        *prefixed(_block(), "mid_block.resnets.1.", "mid.block2."),
    ]


def _level(source: str, level: int, widths: tuple[int, ...], count: int) -> list[Placement]:
    rows = []
    for index in range(count):
        changes = index == 0 and widths[max(level - 1, 0)] != widths[level]
        rows += prefixed(_block(changes), f"{source}.resnets.{index}.", f"levels.{level}.{index}.")
    return rows


def _block(changes: bool = False) -> list[Placement]:
    rows = [*_same("norm1", "norm1"), *_conv("conv1", "conv1"), *_same("norm2", "norm2"), *_conv("conv2", "conv2")]
    return rows + (_conv("conv_shortcut", "shortcut") if changes else [])


def _conv(source: str, target: str) -> list[Placement]:
    return [Placement(f"{source}.weight", f"{target}.weight", CONV_2D), Placement(f"{source}.bias", f"{target}.bias")]


def _same(source: str, target: str, region: tuple[int | slice, ...] = ()) -> list[Placement]:
    return [Placement(f"{source}.{part}", f"{target}.{part}", region=region) for part in ("weight", "bias")]
