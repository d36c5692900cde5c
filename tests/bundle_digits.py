"""Makes the file of digits that the library ships, from those of scikit-learn.

python tests/bundle_digits.py
"""

from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

FILE = Path(__file__).parents[1] / "elt_zoo" / "data" / "assets" / "digits.npz"


def digits() -> dict[str, np.ndarray]:
    """Images and labels of both parts: 360 digits are held out, a fifth of each class."""
    data, target = load_digits(return_X_y=True)
    train, heldout = train_test_split(np.arange(len(target)), test_size=360, random_state=0, stratify=target)
    images = data.reshape(-1, 8, 8, 1).astype(np.uint8)
    arrays = {}
    for name, chosen in (("train", train), ("heldout", heldout)):
        arrays |= {f"{name}_images": images[chosen], f"{name}_labels": target[chosen].astype(np.int32)}
    return arrays


if __name__ == "__main__":
    with FILE.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **digits())
    print(f"{FILE}: {FILE.stat().st_size:,} bytes")
