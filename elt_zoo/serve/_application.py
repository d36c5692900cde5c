import asyncio
import contextlib
import json
import math
import time
from collections.abc import Awaitable, Callable
from typing import Any

from .._optional import optional_import
from .._version import __version__
from ._refusals import Draining, InvalidRequest, Overloaded, SamplingFailed
from ._request import read_request
from ._service import Service

_MOST_BYTES = 2**16
"""Of the body of a request."""


def make_application(service: Service, *, name: str) -> Any:
    """A service behind HTTP, for any ASGI server: `POST /sample`, `GET /`, `GET /health` and `GET /metrics`.

    **Arguments:** `service`, which it starts and drains; `name`: of the model, as `GET /` tells it.

    **Returns:** the Starlette application.

    **Raises:** `ImportError` without the extra `serve`.
    """
    applications = optional_import("starlette.applications", extra="serve")
    routing, responses = (optional_import(f"starlette.{part}", extra="serve") for part in ("routing", "responses"))

    async def sample(http: Any) -> Any:
        arrived = time.perf_counter()
        request = read_request(await _content(http), service.offer)
        answer = await service.submit(request, arrived=arrived)
        service.statistics.count("late" if answer.late else "sampled")
        # Pictures are encoded beside the event loop, which has others to answer.
        if "image/png" in http.headers.get("accept", ""):
            facts = {"seed": request.seed, **answer.facts()}
            headers = {f"elt-{key.replace('_', '-')}": json.dumps(value) for key, value in facts.items()}
            return responses.Response(await asyncio.to_thread(answer.png), media_type="image/png", headers=headers)
        return responses.Response(await asyncio.to_thread(answer.json), media_type="application/json")

    async def describe(http: Any) -> Any:
        offer = service.offer
        described = {
            "model": name,
            "elt_zoo": __version__,
            "classes": offer.classes,
            "most_labels": offer.most_labels,
            "steps": offer.steps,
            "most_loops": offer.most_loops,
            "guidance": service.guidance,
            "usual": offer.usual._asdict(),
            "fastest_ms": offer.fastest,
        }
        return responses.JSONResponse(described)

    async def health(http: Any) -> Any:
        status = "draining" if service.draining else "ready"
        return responses.JSONResponse({"status": status}, status_code=503 if service.draining else 200)

    async def metrics(http: Any) -> Any:
        content, kind = service.statistics.text()
        return responses.Response(content, headers={"content-type": kind})

    def refuse(outcome: str, status: int) -> Callable[[Any, Any], Awaitable[Any]]:
        async def refused(http: Any, error: Any) -> Any:
            service.statistics.count(getattr(error, "reason", outcome))
            # Nobody sends more on a connection that is to be closed.
            headers = {"connection": "close"} if isinstance(error, Draining) else {}
            content = {"reason": getattr(error, "reason", outcome), "message": str(error)}
            if isinstance(error, InvalidRequest):
                content["field"] = error.field
            if isinstance(error, Overloaded):
                content["after_ms"] = round(1e3 * error.seconds, 1)
                headers["retry-after"] = str(math.ceil(error.seconds))
            return responses.JSONResponse({"error": content}, status_code=status, headers=headers)

        return refused

    @contextlib.asynccontextmanager
    async def lifespan(application: Any):
        await service.start()
        yield
        await service.drain()

    return applications.Starlette(
        routes=[
            routing.Route("/sample", sample, methods=["POST"]),
            routing.Route("/", describe),
            routing.Route("/health", health),
            routing.Route("/metrics", metrics),
        ],
        exception_handlers={
            _Unreadable: refuse("invalid", 400),
            _TooLong: refuse("invalid", 413),
            InvalidRequest: refuse("invalid", 422),
            Overloaded: refuse("overloaded", 429),
            Draining: refuse("draining", 503),
            SamplingFailed: refuse("failed", 500),
        },
        lifespan=lifespan,
    )


class _Unreadable(InvalidRequest):
    """A body that is no JSON."""


class _TooLong(InvalidRequest):
    """A body of more bytes than any request has."""


async def _content(http: Any) -> Any:
    """What the body of a request holds."""
    body = bytearray()
    async for part in http.stream():
        body += part
        if len(body) > _MOST_BYTES:
            raise _TooLong(None, f"The request is longer than {_MOST_BYTES} bytes.")
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise _Unreadable(None, f"The request is no JSON: {error}.") from None
