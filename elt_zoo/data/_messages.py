from collections.abc import Sequence


def some(names: Sequence[str], most: int = 5) -> str:
    """Lists the first few of many names, for messages."""
    return (", ".join(names[:most]) or "nothing") + (f" and {len(names) - most} more" if len(names) > most else "")
