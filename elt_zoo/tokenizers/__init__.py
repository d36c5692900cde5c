"""Tokenizers: images and video to discrete tokens or continuous latents, and back."""

from ._autoencoder_kl import AutoencoderKL as AutoencoderKL
from ._autoencoder_kl import AutoencoderKLConfig as AutoencoderKLConfig
from ._base import AbstractTokenizer as AbstractTokenizer
from ._blocks import Shortcut as Shortcut
from ._blocks import nearest_codes as nearest_codes
from ._files import Tokenizer as Tokenizer
from ._files import abstract_tokenizer as abstract_tokenizer
from ._files import describe_tokenizer as describe_tokenizer
from ._files import load_tokenizer as load_tokenizer
from ._files import save_tokenizer as save_tokenizer
from ._grey_levels import GreyLevels as GreyLevels
from ._maskgit_vqgan import MaskGITVQGAN as MaskGITVQGAN
from ._maskgit_vqgan import VQGANConfig as VQGANConfig
from ._patch_codebook import PatchCodebook as PatchCodebook
from ._vq3d import VQ3D as VQ3D
from ._vq3d import VQ3DConfig as VQ3DConfig
from ._vq3d import inflate as inflate
