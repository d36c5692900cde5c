"""Small folders of shards whose records tell what they are."""

from typing import Any

import numpy as np

from elt_zoo.data import ShardOptions, Views
from elt_zoo.data.shards._index import ShardPlan
from elt_zoo.data.shards._write import write_shards

EXAMPLES = 50


def token_plan(**changes):
    settings = {
        "kind": "tokens",
        "fields": {"ids": ("<u2", (2, 3, 3))},
        "class_names": ("cat", "dog", "owl"),
        "examples": EXAMPLES,
        "shard_size": 16,
        "views": Views.FLIP,
        "input_shape": (12, 12, 3),
        "codebook_size": 1024,
        "fingerprint": "0" * 64,
    }
    return ShardPlan(**settings | changes)


def ids_of(example):
    """Ids that tell the example and the view."""
    return (10 * example + np.arange(18).reshape(2, 3, 3)).astype(np.uint16)


def token_records(plan):
    def entries(rows):
        for row in rows:
            record: Any = np.zeros((), plan.record)
            record["label"], record["ids"] = row % 3, ids_of(row)
            yield [record.tobytes()]

    return entries


def write(folder, plan, entries=None, **options):
    return write_shards(folder, plan, token_records(plan) if entries is None else entries, ShardOptions(**options))


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}
