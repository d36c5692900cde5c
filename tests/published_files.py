"""Made-up images in the official formats of CIFAR-10 and MNIST."""

import gzip
import struct
import tarfile

import numpy as np

FILES = (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch")


def made_up_cifar10(count, seed=0):
    """By file name: pixels (count, 3072), plane by plane, and labels."""
    rng = np.random.default_rng(seed)
    return {
        name: (rng.integers(0, 256, (count, 3072), np.uint8), (np.arange(count) + number) % 10)
        for number, name in enumerate(FILES)
    }


def write_cifar10(root, parts, *, version="bin", packed=False):
    """Writes the folder of a version, or its archive, below `root`, and returns the path."""
    folder = root / f"cifar-10-batches-{version}"
    folder.mkdir(parents=True)
    for name, (pixels, labels) in parts.items():
        if version == "bin":
            rows = np.concatenate([labels.astype(np.uint8)[:, None], pixels], axis=1)
            (folder / f"{name}.bin").write_bytes(rows.tobytes())
        else:
            (folder / name).write_bytes(python2_pickle(pixels, labels))
    (folder / "readme.html").write_text("somewhere")
    if not packed:
        return folder
    archive = root / f"cifar-10-{'binary' if version == 'bin' else 'python'}.tar.gz"
    pack(archive, folder)
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()
    return archive


def pack(archive, *folders):
    with tarfile.open(archive, "w:gz", compresslevel=1) as tar:
        for folder in folders:
            tar.add(folder, folder.name)


def python2_pickle(pixels, labels):
    """What Python 2's cPickle wrote of a batch, opcode by opcode (protocol 2): its strings are bytes."""
    content = pixels.tobytes()
    integers = b"".join(b"K" + bytes([label]) for label in labels)
    size, width = (b"J" + struct.pack("<i", number) for number in pixels.shape)
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\nq\x06cnumpy\nndarray\nq\x07K\x00\x85U\x01bq\x08\x87Rq\x09(K\x01"
        + (size + width + b"\x86q\x0a")
        + b"cnumpy\ndtype\nq\x0bU\x02u1q\x0cK\x00K\x01\x87Rq\x0d(K\x03U\x01|q\x0eNNNJ\xff\xff\xff\xffJ\xff\xff\xff\xff"
        + (b"K\x00tb\x89T" + struct.pack("<i", len(content)) + content + b"tb")
    )
    names = b"".join(b"U\x05x.png" for _ in labels)
    return b"\x80\x02}q\x01(U\x0bbatch_labelq\x02U\x15training batch 1 of 5q\x03U\x06labelsq\x04]q\x05(" + (
        integers + b"eU\x04dataq\x0f" + array + b"U\x09filenamesq\x10](" + names + b"eu."
    )


def write_idx(path, array, *, packed=True):
    """Writes bytes in MNIST's format."""
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    content = header + array.tobytes()
    path.write_bytes(gzip.compress(content, 1) if packed else content)


def write_mnist(folder, *, train=40, test=20, packed=True):
    """Writes MNIST's four files and returns their arrays by name."""
    folder.mkdir(parents=True, exist_ok=True)
    rng, arrays = np.random.default_rng(0), {}
    for name, count in (("train", train), ("t10k", test)):
        arrays[f"{name}-images-idx3-ubyte"] = rng.integers(0, 256, (count, 28, 28), np.uint8)
        arrays[f"{name}-labels-idx1-ubyte"] = (np.arange(count) % 10).astype(np.uint8)
    for name, array in arrays.items():
        write_idx(folder / (f"{name}.gz" if packed else name), array, packed=packed)
    return arrays
