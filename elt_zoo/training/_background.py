import threading
from collections.abc import Callable
from concurrent.futures import Future, wait


class Background:
    """One action at a time in a thread of its own. Its failure is kept until somebody asks for it.

    The thread is no daemon: a process that ends waits for it.
    """

    def __init__(self, name: str):
        self._name = name
        self._running: Future[None] | None = None

    def start(self, action: Callable[[], None]) -> None:
        """Starts an action; the one before must have been waited for."""
        assert self._running is None
        running: Future[None] = Future()

        def run() -> None:
            try:
                action()
            except BaseException as error:
                running.set_exception(error)
            else:
                running.set_result(None)

        self._running = running
        threading.Thread(target=run, name=self._name).start()

    @property
    def failed(self) -> bool:
        """Whether the action has ended with an exception that nobody has seen yet."""
        running = self._running
        return running is not None and running.done() and running.exception() is not None

    def finish(self) -> None:
        """Waits for the action, if there is one. **Raises:** what it raised, once."""
        running = self._running
        if running is None:
            return
        wait([running])  # an interrupt here leaves it to be waited for again
        self._running = None
        running.result()
