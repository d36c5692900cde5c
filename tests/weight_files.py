"""Writes the formats of published weights, with nothing but the standard library, NumPy and msgpack."""

import io
import pickle
import struct
import zipfile

import jax.numpy as jnp
import msgpack
import numpy as np
from safetensors.numpy import save_file

_STORAGES = {
    "float64": "DoubleStorage",
    "float32": "FloatStorage",
    "float16": "HalfStorage",
    "bfloat16": "BFloat16Storage",
    "int64": "LongStorage",
    "int32": "IntStorage",
    "uint8": "ByteStorage",
    "bool": "BoolStorage",
}
BFLOAT16 = np.dtype(jnp.bfloat16)


def write_safetensors(path, tensors):
    save_file({name: np.ascontiguousarray(array).reshape(array.shape) for name, array in tensors.items()}, path)


def write_npz(path, tensors, compressed=False):
    (np.savez_compressed if compressed else np.savez)(path, **tensors)


def write_msgpack(path, tree):
    """As `flax.serialization.msgpack_serialize`, for a tree of tables and arrays."""

    def extension(value):
        content = (list(value.shape), value.dtype.name, np.ascontiguousarray(value).tobytes())
        return msgpack.ExtType(1, msgpack.packb(content, use_bin_type=True))

    path.write_bytes(msgpack.packb(tree, default=extension, strict_types=True))


def nested(tensors):
    """The tree whose joined names are those of `tensors`."""
    tree = {}
    for name, array in tensors.items():
        *tables, last = name.split("/")
        table = tree
        for key in tables:
            table = table.setdefault(key, {})
        table[last] = array
    return tree


class Global:
    """A name that a pickle asks for, and calls if there are arguments."""

    def __init__(self, module, name, *arguments):
        self.module, self.name, self.arguments = module, name, arguments


class Storage:
    """A typed storage, and views of it as tensors."""

    def __init__(self, array):
        self.array = np.ascontiguousarray(array).reshape(-1)

    def view(self, offset, shape, strides):
        return View(self, offset, shape, strides)


class View:
    def __init__(self, storage, offset, shape, strides):
        self.storage, self.offset, self.shape, self.strides = storage, offset, shape, strides


def write_torch_zip(path, tree, *, byteorder="little", compression=zipfile.ZIP_STORED, root="archive"):
    """What `torch.save` writes, opcode by opcode (pickle protocol 2)."""
    storages = []
    content = b"\x80\x02" + _opcodes(tree, storages) + b"."
    with zipfile.ZipFile(path, "w", compression) as file:
        file.writestr(f"{root}/data.pkl", content)
        file.writestr(f"{root}/byteorder", byteorder)
        for index, storage in enumerate(storages):
            file.writestr(f"{root}/data/{index}", storage.array.tobytes())
        file.writestr(f"{root}/version", "3\n")


def _opcodes(value, storages):
    match value:
        case np.ndarray():
            strides = tuple(int(np.prod(value.shape[axis + 1 :])) for axis in range(value.ndim))
            return _opcodes(View(Storage(value), 0, value.shape, strides), storages)
        case View():
            if value.storage not in storages:
                storages.append(value.storage)
            array = value.storage.array
            kind = Global("torch", _STORAGES[array.dtype.name])
            identity = ("storage", kind, str(storages.index(value.storage)), "cpu", array.size)
            reference = _opcodes(identity, storages) + b"Q"
            rest = (value.offset, tuple(value.shape), tuple(value.strides), False)
            hooks = _opcodes(Global("collections", "OrderedDict", ()), storages)
            arguments = b"(" + reference + b"".join(_opcodes(each, storages) for each in rest) + hooks + b"t"
            return b"ctorch._utils\n_rebuild_tensor_v2\n" + arguments + b"R"
        case Global():
            named = f"c{value.module}\n{value.name}\n".encode()
            if not value.arguments:
                return named
            return named + _opcodes(value.arguments[0], storages) + b"R"
        case dict():
            items = b"".join(_opcodes(key, storages) + _opcodes(each, storages) for key, each in value.items())
            return b"}(" + items + b"u"
        case tuple():
            return b"(" + b"".join(_opcodes(each, storages) for each in value) + b"t"
        case bool():
            return b"\x88" if value else b"\x89"
        case int():
            return b"J" + struct.pack("<i", value)
        case str():
            encoded = value.encode()
            return b"X" + struct.pack("<I", len(encoded)) + encoded
    buffer = io.BytesIO()
    pickle.dump(value, buffer, protocol=2)
    return buffer.getvalue()[2:-1]
