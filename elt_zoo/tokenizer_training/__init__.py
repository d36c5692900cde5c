"""Training of tokenizers with a learned codebook: rules for the codes, losses, the step, and a measure of quality."""

from ._adversary import Adversary as Adversary
from ._codebook_rules import AbstractCodebookRule as AbstractCodebookRule
from ._codebook_rules import CodebookUpdate as CodebookUpdate
from ._codebook_rules import CodeStatistics as CodeStatistics
from ._codebook_rules import EMACodebook as EMACodebook
from ._codebook_rules import GradientCodebook as GradientCodebook
from ._codebook_rules import straight_through as straight_through
from ._discriminator import Discriminator as Discriminator
from ._discriminator import DiscriminatorConfig as DiscriminatorConfig
from ._gan_losses import discriminator_loss as discriminator_loss
from ._gan_losses import generator_loss as generator_loss
from ._gan_losses import lecam_penalty as lecam_penalty
from ._gan_losses import r1_penalty as r1_penalty
from ._quality import TokenizerQuality as TokenizerQuality
from ._quality import evaluate_tokenizer as evaluate_tokenizer
from ._quality import perplexity as perplexity
from ._quality import psnr as psnr
from ._reconstruction_loss import ReconstructionLoss as ReconstructionLoss
from ._reconstruction_loss import perceptual_distance as perceptual_distance
from ._state import TokenizerModel as TokenizerModel
from ._state import VQTokenizer as VQTokenizer
from ._state import create_tokenizer_state as create_tokenizer_state
from ._step import make_tokenizer_step as make_tokenizer_step
