import asyncio
import concurrent.futures
import socket
import threading
import time
from typing import Any

from .._optional import optional_import
from ._application import make_application
from ._service import Service

_KEEP_ALIVE = 75
"""Seconds that a connection may be silent: longer than proxies keep theirs, which would else send into closed ones."""


class Server:
    """A service on a port, in a thread of this process. It is ready when it has been made.

        server = Server(make_service(generator), name="digits-dit", listener=bind("127.0.0.1", 8000))
        server.wait()
        server.drain()

    **Fields:** `address`, such as `http://127.0.0.1:8000`.
    """

    def __init__(self, service: Service, *, name: str, listener: socket.socket):
        """**Arguments:** `service`; `name`: of the model; `listener`: of [`bind`][elt_zoo.serve.bind].

        **Raises:** `ImportError` without the extra `serve`.
        """
        uvicorn: Any = optional_import("uvicorn", extra="serve")
        host, port = listener.getsockname()[:2]
        self.address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        self._service = service
        application = make_application(service, name=name)
        config = uvicorn.Config(
            application, lifespan="on", log_level="warning", access_log=False, timeout_keep_alive=_KEEP_ALIVE
        )
        self._server = uvicorn.Server(config)
        # To Python 3.11 a thread has ended when Ctrl-C interrupts the waiting for it; not so a future.
        self._ended: concurrent.futures.Future[None] = concurrent.futures.Future()
        threading.Thread(target=self._serve, args=(listener,), name="serving", daemon=True).start()
        while not (self._server.started or self._ended.done()):
            time.sleep(0.005)

    def _serve(self, listener: socket.socket) -> None:
        try:
            asyncio.run(self._server.serve(sockets=[listener]))
            self._ended.set_result(None)
        except BaseException as error:  # uvicorn exits where it cannot start
            self._ended.set_exception(error)

    def wait(self) -> None:
        """Returns when the server has ended, or raises what ended it. A signal interrupts it."""
        self._ended.result()

    def drain(self) -> None:
        """Ends the server: what it has taken is answered, what arrives meanwhile is refused."""
        self._service.drain_soon().result()
        self._server.should_exit = True
        self._ended.result()


def bind(host: str, port: int) -> socket.socket:
    """Takes a port, on which nothing is heard before a [`Server`][elt_zoo.serve.Server] is made.

    **Arguments:** `host`: `127.0.0.1` is this machine alone, `0.0.0.0` everyone who can reach it; `port`: 0 is any that
    is free.

    **Raises:** `OSError` if it is taken.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # With the protocol named, asyncio sends what there is at once. Without, the second packet of an answer may wait for
    # the client's acknowledgement of the first, 40 ms.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise OSError(f"{host}:{port} cannot be served on: {error.strerror}. Choose another port.") from error
    return listener
