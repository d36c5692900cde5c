import abc
import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from .._checks import checked


class CodeStatistics(eqx.Module):
    """Exponential moving averages over batches, for each code."""

    counts: Float[Array, " codes"]
    """How many latents of a batch chose the code."""
    sums: Float[Array, "codes dim"] | None
    """The sum of those latents, if the rule moves codes by it."""


class CodebookUpdate(eqx.Module):
    """A codebook after a step, its statistics, and which of its codes were replaced."""

    codebook: Float[Array, "codes dim"]
    statistics: CodeStatistics
    revived: Bool[Array, " codes"]


@checked
def straight_through(latents: Float[Array, "*grid dim"], codes: Float[Array, "*grid dim"]) -> Float[Array, "*grid dim"]:
    """The codes in the forward pass, the identity of the latents in the backward pass (1711.00937, section 3.2)."""
    return jax.lax.stop_gradient(codes) + (latents - jax.lax.stop_gradient(latents))


@dataclasses.dataclass(frozen=True, kw_only=True)
class AbstractCodebookRule(abc.ABC):
    """How latents are held near their codes, and codes near their latents.

    With K codes, a code's even share of a batch is 1/K of its latents. A code that is chosen by fewer latents than
    `revive_below` times its even share is dead. Dead codes are replaced by latents of the batch, sampled without
    replacement with probabilities proportional to their squared distance from their code, as k-means++ chooses its
    centres. (Uniform sampling would mostly pick the background, which has codes already.) Codes that were never used
    are dead, so the first batch initialises a new codebook.

    **Fields:**

    - `commitment`: β ≥ 0, the weight of the loss that pulls latents to their codes.
    - `decay`: of the moving averages, in [0, 1).
    - `revive_below`: the threshold above, in [0, 1); 0 revives nothing.

    **Raises:** `ValueError` for values outside these ranges.
    """

    commitment: float = 0.25
    decay: float = 0.99
    revive_below: float = 0.03

    def __post_init__(self):
        if self.commitment < 0.0 or not 0.0 <= self.decay < 1.0 or not 0.0 <= self.revive_below < 1.0:
            raise ValueError(
                f"`{self}`: the commitment must be at least 0, the decay and the threshold of revival in [0, 1)."
            )

    @abc.abstractmethod
    def start(self, codebook: Float[Array, "codes dim"], *, codes_initialised: bool) -> CodeStatistics:
        """Statistics before the first step. Unless `codes_initialised`, all codes count as dead."""

    @abc.abstractmethod
    def loss(self, latents: Float[Array, "*grid dim"], codes: Float[Array, "*grid dim"]) -> Float[Array, ""]:
        """The term of the loss, for latents and the codes that they chose."""

    @abc.abstractmethod
    def update(
        self,
        codebook: Float[Array, "codes dim"],
        statistics: CodeStatistics,
        latents: Float[Array, "latents dim"],
        ids: Int[Array, " latents"],
        *,
        key: PRNGKeyArray,
    ) -> CodebookUpdate:
        """The codes and their statistics after a step.

        **Arguments:** `codebook` and `statistics`: before the step; `latents`: of the batch; `ids`: the codes that they
        chose; `key`: for the revival of dead codes.
        """

    def _counts(self, statistics: CodeStatistics, chosen: Float[Array, "latents codes"]) -> Float[Array, " codes"]:
        return self._average(statistics.counts, jnp.sum(chosen, axis=0))

    def _average(self, old: Float[Array, "..."], new: Float[Array, "..."]) -> Float[Array, "..."]:
        return self.decay * old + (1.0 - self.decay) * new

    def _revive(
        self,
        codebook: Float[Array, "codes dim"],
        statistics: CodeStatistics,
        latents: Float[Array, "latents dim"],
        ids: Int[Array, " latents"],
        key: PRNGKeyArray,
    ) -> CodebookUpdate:
        number, codes = latents.shape[0], codebook.shape[0]
        due = number / codes
        dead = statistics.counts < self.revive_below * due
        errors = jnp.sum(jnp.square(latents - codebook[ids]), axis=1)
        # The largest values of log p + Gumbel noise are a sample without replacement.
        _, drawn = jax.lax.top_k(
            jnp.log(errors) + jax.random.gumbel(key, errors.shape, errors.dtype), min(codes, number)
        )
        fresh = latents[jnp.resize(drawn, (codes,))]
        return CodebookUpdate(
            codebook=jnp.where(dead[:, None], fresh, codebook),
            statistics=CodeStatistics(
                counts=jnp.where(dead, due, statistics.counts),
                sums=None if statistics.sums is None else jnp.where(dead[:, None], due * fresh, statistics.sums),
            ),
            revived=dead,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class GradientCodebook(AbstractCodebookRule):
    """Codes that the optimiser moves: ‖sg[z] − e‖² + β‖z − sg[e]‖² (1711.00937, equation 3), means over entries. VQGAN
    (2012.09841) and MAGVIT (2212.05199) use this rule.
    """

    def start(self, codebook: Float[Array, "codes dim"], *, codes_initialised: bool) -> CodeStatistics:
        """Statistics before the first step."""
        return CodeStatistics(_first_counts(codebook, codes_initialised), None)

    @checked
    def loss(self, latents: Float[Array, "*grid dim"], codes: Float[Array, "*grid dim"]) -> Float[Array, ""]:
        """Both terms."""
        pull_codes = jnp.mean(jnp.square(jax.lax.stop_gradient(latents) - codes))
        pull_latents = jnp.mean(jnp.square(latents - jax.lax.stop_gradient(codes)))
        return pull_codes + self.commitment * pull_latents

    @checked
    def update(
        self,
        codebook: Float[Array, "codes dim"],
        statistics: CodeStatistics,
        latents: Float[Array, "latents dim"],
        ids: Int[Array, " latents"],
        *,
        key: PRNGKeyArray,
    ) -> CodebookUpdate:
        """Updates the counts and revives dead codes; the optimiser moves the others."""
        statistics = CodeStatistics(self._counts(statistics, _chosen(ids, codebook)), None)
        return self._revive(codebook, statistics, latents, ids, key)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EMACodebook(AbstractCodebookRule):
    r"""Codes that are the moving averages of their latents, with β‖z − sg[e]‖² in the loss (1711.00937, appendix A.1):
    $N_i \leftarrow \gamma N_i + (1 - \gamma) n_i$, $m_i \leftarrow \gamma m_i + (1 - \gamma) \sum_j z_{ij}$,
    $e_i = m_i / N_i$. The codes get no gradient.

    **Fields:**

    - `epsilon`: of the Laplace smoothing of the counts, $(N_i + \epsilon) N / (N + K \epsilon)$ with
      $N = \sum_i N_i$. It keeps unused codes finite.
    """

    epsilon: float = 1e-5

    def start(self, codebook: Float[Array, "codes dim"], *, codes_initialised: bool) -> CodeStatistics:
        """Statistics before the first step."""
        counts = _first_counts(codebook, codes_initialised)
        return CodeStatistics(counts, counts[:, None] * codebook)

    @checked
    def loss(self, latents: Float[Array, "*grid dim"], codes: Float[Array, "*grid dim"]) -> Float[Array, ""]:
        """The commitment term."""
        return self.commitment * jnp.mean(jnp.square(latents - jax.lax.stop_gradient(codes)))

    @checked
    def update(
        self,
        codebook: Float[Array, "codes dim"],
        statistics: CodeStatistics,
        latents: Float[Array, "latents dim"],
        ids: Int[Array, " latents"],
        *,
        key: PRNGKeyArray,
    ) -> CodebookUpdate:
        """Moves the codes to the averages and revives dead codes."""
        assert statistics.sums is not None
        chosen = _chosen(ids, codebook)
        counts = self._counts(statistics, chosen)
        # A product, because accelerators do not fix the order in which a scatter adds, nor thus its last bits.
        added = jnp.matmul(chosen.T, latents, precision=jax.lax.Precision.HIGHEST)
        sums = self._average(statistics.sums, added)
        total = jnp.sum(counts)
        smooth = (counts + self.epsilon) * total / (total + counts.size * self.epsilon)
        moved = sums / smooth[:, None]
        return self._revive(moved, CodeStatistics(counts, sums), latents, ids, key)


def _first_counts(codebook: Float[Array, "codes dim"], codes_initialised: bool) -> Float[Array, " codes"]:
    return jnp.full(codebook.shape[0], 1.0 if codes_initialised else 0.0, jnp.float32)


def _chosen(ids: Int[Array, " latents"], codebook: Float[Array, "codes dim"]) -> Float[Array, "latents codes"]:
    return jax.nn.one_hot(ids, codebook.shape[0], dtype=jnp.float32)
