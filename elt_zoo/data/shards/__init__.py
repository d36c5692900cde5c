"""Shards: folders of records that are written once and read every epoch."""

from ._images import ShardedImages as ShardedImages
from ._images import pack_images as pack_images
from ._index import ShardIndex as ShardIndex
from ._index import open_shards as open_shards
from ._options import ShardOptions as ShardOptions
from ._options import ShardProgress as ShardProgress
from ._precompute import precompute as precompute
from ._source import ShardedLatents as ShardedLatents
from ._source import ShardedTokens as ShardedTokens
from ._views import Views as Views
