class InvalidRequest(ValueError):
    """A request that the server will never take: what is wrong with which field.

    **Fields:** `field`: its name, or `None` for the request as a whole.
    """

    def __init__(self, field: str | None, problem: str):
        super().__init__(problem if field is None else f"`{field}` {problem}")
        self.field = field


class Overloaded(RuntimeError):
    """A request that the server cannot take now.

    **Fields:** `reason`: `queue_full` or `too_late`; `seconds`: after which a request like it would be sampled, or how
    soon this one could be.
    """

    def __init__(self, reason: str, message: str, *, seconds: float):
        super().__init__(message)
        self.reason, self.seconds = reason, seconds


class Draining(RuntimeError):
    """A request to a server that is about to stop."""

    def __init__(self):
        super().__init__("The server is stopping: it finishes what it has taken, and takes nothing new.")


class SamplingFailed(RuntimeError):
    """A request whose batch could not be sampled. Its cause is what was raised."""
