import dataclasses

from ..distributed import agree, start


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProcessOptions:
    """How several processes that share one command find each other."""

    coordinator: str | None = None
    """Several processes: `host:port` of process 0. Slurm, Open MPI, Kubernetes and Cloud TPU need none of these."""
    processes: int | None = None
    """Several processes: how many."""
    process: int | None = None
    """Several processes: which one this is, from 0."""
    start_timeout: float = 300.0
    """Several processes: seconds to wait for the others at the start."""

    def start(self) -> None:
        """Joins the other processes, if there are any, and makes sure that all have the same options."""
        start(self.coordinator, self.processes, self.process, timeout=self.start_timeout)
        agree({name: value for name, value in dataclasses.asdict(self).items() if name not in _OF_ONE_PROCESS})


_OF_ONE_PROCESS = tuple(field.name for field in dataclasses.fields(ProcessOptions))
