"""Published weights: which there are, where they come from, how they are named, and how to read them."""

from ._autoencoder_kl_names import autoencoder_kl_names as autoencoder_kl_names
from ._catalog import Status as Status
from ._catalog import Weights as Weights
from ._catalog import catalog as catalog
from ._catalog import fetch as fetch
from ._dit import load_dit as load_dit
from ._dit_names import dit_diffusers_names as dit_diffusers_names
from ._dit_names import dit_names as dit_names
from ._extractor_names import i3d_names as i3d_names
from ._extractor_names import inception_names as inception_names
from ._extractors import load_i3d as load_i3d
from ._extractors import load_inception as load_inception
from ._licence import LicenceWarning as LicenceWarning
from ._maskgit import load_maskgit as load_maskgit
from ._maskgit_names import maskgit_names as maskgit_names
from ._maskgit_names import split_vocabulary as split_vocabulary
from ._tokenizers import load_autoencoder_kl as load_autoencoder_kl
from ._tokenizers import load_maskgit_vqgan as load_maskgit_vqgan
from ._tokenizers import load_vq3d as load_vq3d
from ._vq_names import vq3d_flax_names as vq3d_flax_names
from ._vq_names import vqgan_flax_names as vqgan_flax_names
from ._vq_names import vqgan_torch_names as vqgan_torch_names
