"""Weights: read published ones and our own, write our own."""

from ._assemble import Shardings as Shardings
from ._assemble import assemble as assemble
from ._catalog import PublishedFile as PublishedFile
from ._catalog import Status as Status
from ._catalog import Weights as Weights
from ._catalog import catalog as catalog
from ._catalog import fetch as fetch
from ._dit import load_dit as load_dit
from ._files import LoadedModel as LoadedModel
from ._files import bundled_names as bundled_names
from ._files import load as load
from ._files import save as save
from ._licence import LicenceWarning as LicenceWarning
from ._maskgit import load_maskgit as load_maskgit
from ._read import read_tensors as read_tensors
from ._tensor_file import StoredTensor as StoredTensor
from ._tensor_file import TensorFile as TensorFile
from ._tensor_file import WeightsError as WeightsError
from ._tokenizer_files import load_tokenizer as load_tokenizer
from ._tokenizer_files import save_tokenizer as save_tokenizer
from ._tokenizers import load_autoencoder_kl as load_autoencoder_kl
from ._tokenizers import load_maskgit_vqgan as load_maskgit_vqgan
from ._tokenizers import load_vq3d as load_vq3d
