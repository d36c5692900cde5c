"""Large numbers as people read them."""


def _scaled(value: float, base: float, units: tuple[str, ...]) -> str:
    index = 0
    while value >= base and index < len(units) - 1:
        value, index = value / base, index + 1
    return f"{value:.4g} {units[index]}".rstrip()


def count(value: int) -> str:
    return _scaled(value, 1000.0, ("", "thousand", "million", "billion"))


def num_flops(value: float) -> str:
    return _scaled(value, 1000.0, ("FLOPs", "kFLOPs", "MFLOPs", "GFLOPs", "TFLOPs", "PFLOPs"))


def operations(macs: int) -> str:
    prefixes = ("", "k", "M", "G", "T", "P")
    flops, macs_text = (
        _scaled(value, 1000.0, tuple(prefix + unit for prefix in prefixes))
        for value, unit in ((2 * macs, "FLOPs"), (macs, "MACs"))
    )
    return f"{flops} ({macs_text})"


def num_bytes(value: int) -> str:
    return _scaled(value, 1024.0, ("B", "KiB", "MiB", "GiB", "TiB"))
