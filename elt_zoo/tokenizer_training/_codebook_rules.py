import abc
import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from .._checks import checked


class CodeStatistics(eqx.Module):
    """What a rule remembers of each code: exponential moving averages over batches."""

    counts: Float[Array, " codes"]
    """Latents of a batch that chose the code."""
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

    A code is dead when it is chosen by fewer than `revive_below` times the share of a batch that is its due, 1/K. Dead
    codes are replaced by latents of the batch, drawn without replacement and with probabilities in proportion to their
    squared distance from their code, as k-means++ would choose its next centre: drawn evenly, most would be of the
    background, which has its codes already. Codes that were never used count as dead, so the first batch initialises a
    new codebook.

    **Fields:**

    - `commitment`: β, the weight of the pull on latents.
    - `decay`: of the moving averages, in [0, 1).
    - `revive_below`: see above; 0 revives nothing.
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
        """What becomes of the codes after a step with these latents, and the ids that they chose."""

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
        # The largest of log p + Gumbel noise are draws without replacement.
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
    (2012.09841) and MAGVIT (2212.05199) train theirs so.
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
        """Counts, and revives the dead."""
        statistics = CodeStatistics(self._counts(statistics, _chosen(ids, codebook)), None)
        return self._revive(codebook, statistics, latents, ids, key)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EMACodebook(AbstractCodebookRule):
    r"""Codes that are the moving averages of their latents, with β‖z − sg[e]‖² in the loss (1711.00937, appendix A.1):
    $N_i \leftarrow \gamma N_i + (1 - \gamma) n_i$, $m_i \leftarrow \gamma m_i + (1 - \gamma) \sum_j z_{ij}$,
    $e_i = m_i / N_i$. The gradient leaves them alone.

    **Fields:**

    - `epsilon`: of the Laplace smoothing of the counts, $(N_i + \epsilon) N / (N + K \epsilon)$ with
      $N = \sum_i N_i$, which keeps codes finite that nothing chose.
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
        """Moves the codes to the averages, and revives the dead."""
        assert statistics.sums is not None
        chosen = _chosen(ids, codebook)
        counts = self._counts(statistics, chosen)
        # A product and not a scatter, whose order of additions, and so whose last bits, accelerators leave open.
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
