import bisect
import dataclasses
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from ..anytime import Latency, Planner
from ._refusals import Overloaded
from ._request import SampleRequest, Way


class Option(NamedTuple):
    """One way to sample a batch."""

    way: Way
    seconds: float
    """What one batch in 200 exceeds."""
    quality: float
    """The predicted distance; lower is better. 0 where there is no choice."""


class Menu:
    """The ways to sample a batch of each size, and their times."""

    def __init__(self, latencies: Iterable[Latency], planner: Planner | None):
        """**Arguments:** `latencies`: one for each batch size; `planner`: of the same sizes, if there is one."""
        self._latencies = {latency.batch: latency for latency in latencies}
        self.sizes = tuple(sorted(self._latencies))
        self._frontiers = {size: _options(planner, size) for size in self.sizes} if planner else {}
        self.tolerance = (planner.quality.error or 0.0) if planner else 0.0
        """Differences in quality up to this are none."""

    def options(self, way: Way | None, size: int) -> tuple[Option, ...]:
        """From the fastest to the best: every plan worth taking, or the one way that was asked for."""
        return self._frontiers[size] if way is None else (Option(way, self.seconds(way, size), 0.0),)

    def seconds(self, way: Way, size: int) -> float:
        """What one batch in 200 exceeds."""
        latency = self._latencies[size]
        return latency.tail * latency.predict(steps=way.steps, loops=sum(way.loops))

    @property
    def timed(self) -> bool:
        """Whether there are plans for a time."""
        return bool(self._frontiers)

    def size(self, samples: int) -> int:
        """The smallest batch that holds so many."""
        return next(size for size in self.sizes if size >= samples)


def _options(planner: Planner, size: int) -> tuple[Option, ...]:
    return tuple(
        Option(Way(plan.steps, plan.loops), plan.late_milliseconds / 1e3, plan.quality)
        for plan in planner.frontier(batch=size)
    )


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Ticket:
    """A request that waits.

    **Fields:** `arrived`, `due`: seconds of the server's clock; `promised`: whether `due` is a deadline or only its
    turn; `answer`: what the server keeps with it.
    """

    request: SampleRequest
    arrived: float
    due: float
    promised: bool
    answer: Any = None


class Batch(NamedTuple):
    """What is sampled together."""

    tickets: tuple[Ticket, ...]
    size: int
    """Samples, padding included."""
    option: Option
    seconds: float
    """What it should take at most."""
    late: int
    """How many promises it breaks, of its own and of those that wait."""


class Schedule:
    """Which requests are sampled together, when, and how.

    The earliest deadline comes first. A request is admitted if, were everything sampled by the fastest plans, it would
    be in time and make no other late. Batches then take the best plan that breaks no promise: when many wait, quality
    gives way before time does, and time before anybody is lost.

    **Arguments:**

    - `menu`: the ways to sample.
    - `capacity`: requests that may wait.
    - `patience`: seconds after which it is the turn of a request without a deadline.
    - `reserve`: seconds of every deadline that are kept for encoding and sending.

    **Fields:** `waiting`: by what is due first; `pace`: how many times as long as the menu says batches take now.
    """

    def __init__(self, menu: Menu, *, capacity: int, patience: float, reserve: float):
        self.menu, self.capacity, self.patience, self.reserve = menu, capacity, patience, reserve
        self.waiting: list[Ticket] = []
        self.pace = 1.0

    def admit(self, request: SampleRequest, *, arrived: float, start: float, answer: Any = None) -> Ticket:
        """Queues a request.

        **Arguments:** `arrived`: when; `start`: when the next batch can begin; `answer`: to keep.

        **Raises:** [`Overloaded`][elt_zoo.serve.Overloaded] if the queue is full, or the request would be late or make
        another one late.
        """
        if len(self.waiting) >= self.capacity:
            *_, (_, end) = self._ends(self.waiting, start)
            raise Overloaded(
                "queue_full", f"{len(self.waiting)} requests wait already, as many as may.", seconds=end - arrived
            )
        promised = request.milliseconds is not None
        time = self.patience if request.milliseconds is None else request.milliseconds / 1e3 - self.reserve
        ticket = Ticket(request=request, arrived=arrived, due=arrived + time, promised=promised, answer=answer)
        waiting = list(self.waiting)
        bisect.insort(waiting, ticket, key=lambda each: each.due)
        if self._late(waiting, start) > self._late(self.waiting, start):
            ends = dict(self._ends([*self.waiting, ticket], start))
            seconds = ends[ticket] - arrived + self.reserve
            wanted = f"in {request.milliseconds:g} ms" if request.milliseconds is not None else "now"
            raise Overloaded(
                "too_late",
                f"This cannot be sampled {wanted} without making others late: {len(self.waiting)} requests wait. It "
                f"would take about {1e3 * seconds:.3g} ms.",
                seconds=seconds,
            )
        self.waiting = waiting
        return ticket

    def next(self, now: float) -> Batch | None:
        """Takes the next batch from the queue: of every size the one with the most urgent requests and the best plan
        for them; of these, the largest whose quality is as good as any.
        """
        if not self.waiting:
            return None
        batches: list[Batch] = []
        for room in self.menu.sizes:
            tickets = self._together(self.waiting, room)
            if tickets and (not batches or len(tickets) > len(batches[-1].tickets)):
                batches.append(self._batch(tickets, now))
        least = min(batch.late for batch in batches)
        kind = [batch for batch in batches if batch.late == least]
        best = min(batch.option.quality for batch in kind)
        chosen = [batch for batch in kind if batch.option.quality <= best + self.menu.tolerance][-1]
        self.waiting = _without(self.waiting, chosen.tickets)
        return chosen

    def _batch(self, tickets: Sequence[Ticket], now: float) -> Batch:
        """The best plan that makes no more requests late than the fastest would, were all that wait sampled as well."""
        size, rest = self._size(tickets), _without(self.waiting, tickets)

        options = self.menu.options(tickets[0].request.way, size)

        def late(option: Option) -> int:
            end = now + self.pace * option.seconds
            after = self._ends(rest, end, quality=math.inf if option is options[0] else option.quality)
            return _count_late((ticket, end) for ticket in tickets) + _count_late(after)

        least = late(options[0])
        hopeless = _count_late((ticket, now + self.pace * options[0].seconds) for ticket in tickets)
        chosen = options[0 if hopeless else bisect.bisect_right(options, least, key=late) - 1]
        return Batch(tuple(tickets), size, chosen, self.pace * chosen.seconds, least)

    def _late(self, waiting: Sequence[Ticket], start: float) -> int:
        """How many promises cannot be kept."""
        return _count_late(self._ends(waiting, start))

    def _ends(
        self, waiting: Sequence[Ticket], start: float, *, quality: float = math.inf
    ) -> Iterator[tuple[Ticket, float]]:
        """When each would be done, in the largest batches and by the fastest plans that are as good as `quality`."""
        while waiting:
            tickets = self._together(waiting, self.menu.sizes[-1])
            options = self.menu.options(tickets[0].request.way, self._size(tickets))
            enough = bisect.bisect_left(options, -quality, key=lambda option: -option.quality)
            start += self.pace * options[min(enough, len(options) - 1)].seconds
            yield from ((ticket, start) for ticket in tickets)
            waiting = _without(waiting, tickets)

    def _together(self, waiting: Sequence[Ticket], room: int) -> list[Ticket]:
        """The first request, and those after it that may share its batch; none if it does not fit."""
        way, tickets = waiting[0].request.way, []
        for ticket in waiting:
            if ticket.request.way == way and len(ticket.request.labels) <= room:
                tickets.append(ticket)
                room -= len(ticket.request.labels)
            elif not tickets:
                break
        return tickets

    def _size(self, tickets: Sequence[Ticket]) -> int:
        return self.menu.size(sum(len(ticket.request.labels) for ticket in tickets))


def _count_late(ends: Iterable[tuple[Ticket, float]]) -> int:
    return sum(ticket.promised and end > ticket.due for ticket, end in ends)


def _without(waiting: Sequence[Ticket], tickets: Sequence[Ticket]) -> list[Ticket]:
    gone = set(tickets)
    return [ticket for ticket in waiting if ticket not in gone]
