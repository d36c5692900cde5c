import asyncio
import concurrent.futures
import dataclasses
import logging
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Key, UInt32

from ..anytime import Latency, Planner, measure_latency
from ..generator import Generator
from ..sampling import table_budget
from ._answer import Answer
from ._pace import Pace
from ._refusals import Draining, SamplingFailed
from ._request import Offer, SampleRequest, Way
from ._schedule import Batch, Menu, Schedule
from ._statistics import Statistics

_LOG = logging.getLogger(__name__)
_BEYOND = 2
"""How many times the loops of training may be asked for."""
_SENDING = 2e-3
"""Seconds to read a request and to send its answer."""


class Service:
    """Samples for many at once: a queue, and one thread that samples batch after batch.

    Made by [`make_service`][elt_zoo.serve.make_service]. All but the sampling happens in the event loop that `start` is
    called in.

    **Fields:** `generator`; `offer`: what requests may ask for; `statistics`; `draining`: whether it takes nothing new.
    """

    def __init__(
        self,
        generator: Generator,
        latencies: Sequence[Latency],
        *,
        steps: Sequence[int],
        queue: int = 64,
        patience: float = 1.0,
        reserve: float = 0.0,
    ):
        """**Arguments:** `generator`, `queue`, `patience`: as for `make_service`; `latencies`: one for each batch size;
        `steps`: numbers of steps that are compiled; `reserve`: seconds of every deadline for encoding and sending.
        """
        planner = generator.planner if isinstance(generator.planner, Planner) else None
        menu = Menu(latencies, planner)
        self.generator, self.draining = generator, False
        self.guidance = generator.settings.guidance if planner is None else planner.guidance
        self.offer = _offer(generator, menu, steps=tuple(steps), reserve=reserve)
        self._schedule = Schedule(menu, capacity=queue, patience=patience, reserve=reserve)
        self.statistics = Statistics(waiting=lambda: len(self._schedule.waiting), sizes=menu.sizes)
        self._worker = concurrent.futures.ThreadPoolExecutor(max_workers=1, thread_name_prefix="sampling")
        self._free, self._pace = 0.0, Pace()

    async def start(self) -> None:
        """Begins to sample what is asked for, in the running event loop."""
        self._loop, self._arrived = asyncio.get_running_loop(), asyncio.Event()
        self._sampling = asyncio.create_task(self._sample_all())

    async def submit(self, request: SampleRequest, *, arrived: float | None = None) -> Answer:
        """Queues a request, and waits for its samples.

        **Arguments:** `request`; `arrived`: when, by `time.perf_counter`; default now.

        **Raises:** [`Draining`][elt_zoo.serve.Draining], [`Overloaded`][elt_zoo.serve.Overloaded], or
        [`SamplingFailed`][elt_zoo.serve.SamplingFailed].
        """
        if self.draining:
            raise Draining()
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        now = time.perf_counter()
        arrived = now if arrived is None else arrived
        self._schedule.pace = self._pace.at(now)
        self._schedule.admit(request, arrived=arrived, start=max(now, self._free), answer=answer)
        self._arrived.set()
        return await answer

    async def drain(self) -> None:
        """Takes nothing new, and returns when all that was taken is sampled."""
        self.draining = True
        self._arrived.set()
        await self._sampling
        self._worker.shutdown()

    def drain_soon(self) -> concurrent.futures.Future[None]:
        """The same, from another thread."""
        return asyncio.run_coroutine_threadsafe(self.drain(), self._loop)

    async def _sample_all(self) -> None:
        while True:
            started = time.perf_counter()
            self._schedule.pace = self._pace.at(started)
            batch = self._schedule.next(started)
            if batch is None:
                if self.draining:
                    return
                self._arrived.clear()
                await self._arrived.wait()
                continue
            self._free = started + batch.seconds
            try:
                pixels = await self._loop.run_in_executor(self._worker, self._pixels, batch)
            except Exception as error:  # of one batch: the server goes on
                _LOG.exception("A batch could not be sampled.")
                for ticket in batch.tickets:
                    failed = SamplingFailed(f"The samples could not be made: {error}")
                    failed.__cause__ = error
                    if not ticket.answer.done():  # the client may have gone
                        ticket.answer.set_exception(failed)
                continue
            self._answer(batch, pixels, started, time.perf_counter())

    def _answer(self, batch: Batch, pixels: np.ndarray, started: float, ended: float) -> None:
        """Hands the samples of a batch to those who wait for them."""
        self._pace.observe(ended, (ended - started) / batch.option.seconds)
        self.statistics.sampled.observe(ended - started)
        self.statistics.samples.observe(len(pixels))
        begin = 0
        for ticket in batch.tickets:
            end = begin + len(ticket.request.labels)
            self.statistics.waited.observe(started - ticket.arrived)
            self.statistics.answered.observe(ended - ticket.arrived)
            answer = Answer(
                pixels=pixels[begin:end],
                request=ticket.request,
                way=batch.option.way,
                batch=batch.size,
                waited=started - ticket.arrived,
                sampled=ended - started,
                late=ticket.promised and ended > ticket.due,
            )
            if not ticket.answer.done():  # the client may have gone
                ticket.answer.set_result(answer)
            begin = end

    def _pixels(self, batch: Batch) -> np.ndarray:
        """The samples of all requests of a batch, one after the other. Each depends on its own request alone."""
        requests = [ticket.request for ticket in batch.tickets]
        labels = [label for request in requests for label in request.labels]
        seeds = [request.seed for request in requests for _ in request.labels]
        numbers = [number for request in requests for number in range(len(request.labels))]
        padding = batch.size - len(labels)
        pixels = self.generator.sample(
            np.asarray(labels + labels[:1] * padding),
            key=_keys(np.asarray(seeds + [0] * padding, np.uint32), np.asarray(numbers + [0] * padding, np.uint32)),
            loops=table_budget(batch.option.way.loops),
            steps=batch.option.way.steps,
            guidance=self.guidance,
            batch_size=batch.size,
        )
        return pixels[: len(labels)]


def make_service(
    generator: Generator,
    *,
    batches: Sequence[int] = (1, 4, 16),
    queue: int = 64,
    patience: float = 1.0,
    repeats: int = 60,
) -> Service:
    """Compiles all that a server will need, and times it.

    **Arguments:**

    - `generator`: what to sample. With its `planner`, requests may have deadlines; without, they may not.
    - `batches`: the sizes that batches are padded to. The largest is the most labels of a request.
    - `queue`: requests that may wait.
    - `patience`: seconds after which it is the turn of a request without a deadline, though others are more urgent.
    - `repeats`: as for [`measure_latency`][elt_zoo.anytime.measure_latency], for every batch size.

    **Returns:** the [`Service`][elt_zoo.serve.Service].

    **Raises:** `ValueError` for counts below 1, or a patience that is no positive number; `ImportError` without the
    extra `serve`.
    """
    batches = tuple(sorted(set(batches)))
    if not batches or min(*batches, queue, repeats) < 1 or not 0 < patience < float("inf"):
        raise ValueError(
            f"`make_service(batches={batches}, queue={queue}, patience={patience}, repeats={repeats})`: each must be "
            "at least 1, and the patience a positive number of seconds."
        )
    planner = generator.planner
    options: dict[str, Any] = {"steps": (generator.settings.steps,)}
    if isinstance(planner, Planner):
        steps = sorted({by_steps.steps for by_steps in planner.quality.by_steps})
        options = {"steps": tuple(steps), "every": planner.every, "guidance": planner.guidance}
    latencies = [
        measure_latency(generator, batch=batch, repeats=repeats, own_keys=True, **options) for batch in batches
    ]
    if isinstance(planner, Planner):
        # The programs of a server are others than those that the planner has timed.
        generator = dataclasses.replace(generator, planner=dataclasses.replace(planner, latencies=tuple(latencies)))
    service = Service(
        generator,
        latencies,
        steps=options["steps"],
        queue=queue,
        patience=patience,
        reserve=_reserve(generator, batches[-1]),
    )
    for batch in batches:
        jax.block_until_ready(_keys(np.zeros(batch, np.uint32), np.zeros(batch, np.uint32)))
    return service


def _offer(generator: Generator, menu: Menu, *, steps: tuple[int, ...], reserve: float) -> Offer:
    most, usual = generator.config.max_loops, generator.settings.steps
    usual = usual if usual in steps else max(steps)
    fastest = {}
    if menu.timed:
        for count in range(1, menu.sizes[-1] + 1):
            fastest[count] = 1e3 * (menu.options(None, menu.size(count))[0].seconds + reserve)
    return Offer(
        classes=generator.config.num_classes,
        most_labels=menu.sizes[-1],
        steps=steps,
        most_loops=_BEYOND * most,
        usual=Way(usual, (most,) * usual),
        fastest=fastest,
    )


def _reserve(generator: Generator, count: int) -> float:
    """Seconds from the end of a batch until the last of so many answers is sent."""
    pixels = np.random.default_rng(0).uniform(-1.0, 1.0, (1, *generator.pixels.shape)).astype(np.float32)
    request, way = SampleRequest(labels=(0,), seed=0), Way(1, (1,))
    answer = Answer(pixels=pixels, request=request, way=way, batch=1, waited=0.0, sampled=0.0, late=False)
    answer.json()  # imports what it needs
    started = time.perf_counter()
    for _ in range(count):
        answer.json()
    return time.perf_counter() - started + _SENDING


@jax.jit
def _keys(seeds: UInt32[Array, " samples"], numbers: UInt32[Array, " samples"]) -> Key[Array, " samples"]:
    """The key of every sample, from the seed of its request and its number there."""
    return jax.vmap(lambda seed, number: jax.random.fold_in(jax.random.key(seed), number))(seeds, numbers)
