"""Tokenizers: images and video to discrete tokens or continuous latents, and back."""

from ._autoencoder_kl import AutoencoderKL as AutoencoderKL
from ._autoencoder_kl import AutoencoderKLConfig as AutoencoderKLConfig
from ._autoencoder_kl_names import autoencoder_kl_names as autoencoder_kl_names
from ._base import AbstractTokenizer as AbstractTokenizer
from ._blocks import Shortcut as Shortcut
from ._blocks import nearest_codes as nearest_codes
from ._grey_levels import GreyLevels as GreyLevels
from ._maskgit_vqgan import MaskGITVQGAN as MaskGITVQGAN
from ._maskgit_vqgan import VQGANConfig as VQGANConfig
from ._patch_codebook import PatchCodebook as PatchCodebook
from ._vq3d import VQ3D as VQ3D
from ._vq3d import VQ3DConfig as VQ3DConfig
from ._vq3d import inflate as inflate
from ._vq_names import vq3d_flax_names as vq3d_flax_names
from ._vq_names import vqgan_flax_names as vqgan_flax_names
from ._vq_names import vqgan_torch_names as vqgan_torch_names
