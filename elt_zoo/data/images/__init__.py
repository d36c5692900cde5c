"""Images in files: decoding, crops, and sources for folders, tar archives and ImageNet."""

from ._decode import decode_image as decode_image
from ._folder import image_folder as image_folder
from ._imagenet import imagenet as imagenet
from ._imagenet import imagenet_classes as imagenet_classes
from ._source import ImageSource as ImageSource
from ._tar import image_tar as image_tar
from ._transform import ImageTransform as ImageTransform
