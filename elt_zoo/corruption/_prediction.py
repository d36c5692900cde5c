import enum

from jaxtyping import Array, Float


class Prediction(enum.StrEnum):
    """What a diffusion network predicts about x_t = α·x0 + σ·ε (with α² + σ² = 1).

    `X0` the clean array, `EPSILON` the noise (2006.11239), `V` the velocity v = α·ε − σ·x0 (2202.00512, appendix D).
    Any two of x_t, x0, ε and v give the rest. The methods take arrays of any shape, with one α and σ for all entries.
    """

    X0 = "x0"
    V = "v"
    EPSILON = "epsilon"

    def target(
        self,
        x0: Float[Array, "*shape"],
        epsilon: Float[Array, "*shape"],
        alpha: Float[Array, ""],
        sigma: Float[Array, ""],
    ) -> Float[Array, "*shape"]:
        """What the network should output for clean `x0` and noise `epsilon`."""
        match self:
            case Prediction.X0:
                return x0
            case Prediction.EPSILON:
                return epsilon
            case Prediction.V:
                return alpha * epsilon - sigma * x0

    def to_x0(
        self,
        output: Float[Array, "*shape"],
        x_t: Float[Array, "*shape"],
        alpha: Float[Array, ""],
        sigma: Float[Array, ""],
    ) -> Float[Array, "*shape"]:
        """The clean array that an output stands for."""
        match self:
            case Prediction.X0:
                return output
            case Prediction.EPSILON:
                return (x_t - sigma * output) / alpha
            case Prediction.V:
                return alpha * x_t - sigma * output

    def to_epsilon(
        self,
        output: Float[Array, "*shape"],
        x_t: Float[Array, "*shape"],
        alpha: Float[Array, ""],
        sigma: Float[Array, ""],
    ) -> Float[Array, "*shape"]:
        """The noise that an output stands for."""
        match self:
            case Prediction.X0:
                return (x_t - alpha * output) / sigma
            case Prediction.EPSILON:
                return output
            case Prediction.V:
                return sigma * x_t + alpha * output
