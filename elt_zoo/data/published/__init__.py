"""Small published sets of images, read into memory from their official files: CIFAR-10 and MNIST."""

from ._cifar10 import cifar10 as cifar10
from ._fetch import IMAGE_SETS as IMAGE_SETS
from ._fetch import fetch_images as fetch_images
from ._idx import read_idx as read_idx
from ._image_set import ImageSet as ImageSet
from ._mnist import mnist as mnist
