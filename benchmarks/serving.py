"""Whether `elt-zoo serve` keeps its deadlines, and loses nobody, with many clients at once.

    pip install 'elt_zoo[serve]' && python benchmarks/serving.py --out benchmarks/results/serving

Requirement: every request is answered or refused with a reason, and at most one answer in twenty is late. The script
starts the command and sends it requests over loopback, from clients that wait for their answer and then pause. Each
asks for one to four samples, in no hurry or in a time that is drawn from multiples of the fastest plan's; where it is
refused it pauses as well. Times run from sending to the last byte, by the client's clock, so that a busy client counts
against the server: give the two a core each. At the end SIGTERM must end the server in order.
"""

import argparse
import asyncio
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from timing import write_csv

from elt_zoo.profile import environment

HURRIES = (None, 1.5, 2.0, 4.0, 8.0)
"""Deadlines in multiples of the fastest plan."""
BUCKETS = (10, 20, 30, 50, 75, 100, 200, 300, 500, 1000)
"""Upper ends of the histogram, in milliseconds."""


class Outcome(NamedTuple):
    """What became of a request."""

    hurry: float | None
    deadline: float | None
    milliseconds: float
    status: int
    content: dict[str, Any]

    @property
    def late(self) -> bool:
        return self.status == 200 and self.deadline is not None and self.milliseconds > self.deadline


@contextlib.contextmanager
def server(arguments: argparse.Namespace) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The command, once it is ready, and its address."""
    command = [sys.executable, "-m", "elt_zoo", "serve", "--model", arguments.model, "--port", "0"]
    if arguments.measurements is not None:
        command += ["--measurements", arguments.measurements]
    if arguments.core is not None:
        command = ["taskset", "-c", arguments.core, *command]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            ready = next((line for line in process.stdout if line.startswith("Ready at ")), None)
            if ready is None:
                raise SystemExit(f"`{' '.join(command)}` ended before it was ready.")
            yield process, ready.split()[2]
        finally:
            process.kill()


async def post(streams: tuple[asyncio.StreamReader, asyncio.StreamWriter], body: bytes) -> tuple[int, bytes]:
    """One request on an open connection. A client library would take longer than the server."""
    reader, writer = streams
    writer.write(b"POST /sample HTTP/1.1\r\nhost: server\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body))
    head = (await reader.readuntil(b"\r\n\r\n")).decode().lower().split("\r\n")
    length = next(int(line.split(":")[1]) for line in head if line.startswith("content-length:"))
    return int(head[0].split()[1]), await reader.readexactly(length)


async def client(address: str, fastest: float, stop: float, pause: float, seed: int) -> list[Outcome]:
    """Asks, waits and pauses until it is time to stop. A broken connection is an outcome of status 0."""
    rng, outcomes = random.Random(seed), []
    host, port = address.removeprefix("http://").split(":")
    streams = await asyncio.open_connection(host, int(port))
    await asyncio.sleep(rng.uniform(0.0, pause))
    while time.perf_counter() < stop:
        hurry = rng.choice(HURRIES)
        deadline = None if hurry is None else hurry * fastest
        asked = {"labels": [rng.randrange(10) for _ in range(rng.randint(1, 4))], "seed": rng.randrange(2**32)}
        asked |= {} if deadline is None else {"milliseconds": deadline}
        started = time.perf_counter()
        try:
            status, answer = await asyncio.wait_for(post(streams, json.dumps(asked).encode()), 60)
        except (OSError, EOFError, TimeoutError, asyncio.IncompleteReadError):
            status, answer = 0, b"{}"
            streams = await asyncio.open_connection(host, int(port))
        milliseconds = 1e3 * (time.perf_counter() - started)
        outcomes.append(Outcome(hurry, deadline, milliseconds, status, json.loads(answer)))
        await asyncio.sleep(rng.expovariate(1.0 / pause))
    streams[1].close()
    return outcomes


async def load(arguments: argparse.Namespace, address: str, fastest: float) -> list[Outcome]:
    """What became of all requests of all clients."""
    stop = time.perf_counter() + arguments.seconds
    clients = (client(address, fastest, stop, arguments.pause, seed) for seed in range(arguments.clients))
    return [outcome for each in await asyncio.gather(*clients) for outcome in each]


def summary(outcomes: Sequence[Outcome], fastest: float) -> list[dict[str, Any]]:
    """A row for each kind of deadline, and one for all."""
    rows = []
    names = {hurry: "none" if hurry is None else f"{hurry * fastest:.1f}" for hurry in HURRIES}
    kinds = {name: [outcome for outcome in outcomes if outcome.hurry == hurry] for hurry, name in names.items()}
    for name, kind in (kinds | {"all": list(outcomes)}).items():
        answered = [outcome for outcome in kind if outcome.status == 200]
        promised = [outcome for outcome in answered if outcome.deadline is not None]
        reasons = Counter(outcome.content["error"]["reason"] for outcome in kind if outcome.status not in (0, 200))
        times = [outcome.milliseconds for outcome in answered] or [float("nan")]
        row: dict[str, Any] = {"deadline_ms": name, "requests": len(kind), "answered": len(answered)}
        row |= {"too_late": reasons["too_late"], "queue_full": reasons["queue_full"]}
        row |= {"other": reasons.total() - reasons["too_late"] - reasons["queue_full"]}
        row |= {"lost": sum(outcome.status == 0 for outcome in kind), "late": sum(outcome.late for outcome in kind)}
        row |= {"late_share": round(row["late"] / len(promised), 4) if promised else ""}
        row |= {f"p{part}_ms": round(float(np.quantile(times, part / 100)), 1) for part in (50, 95, 99)}
        row |= {"max_ms": round(max(times), 1)}
        loops = [sum(outcome.content["loops"]) for outcome in answered] or [float("nan")]
        row |= {"mean_loops": round(float(np.mean(loops)), 1)}
        rows.append(row)
    return rows


def histogram(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """Answers by their time."""
    counts, _ = np.histogram(
        [outcome.milliseconds for outcome in outcomes if outcome.status == 200], [0, *BUCKETS, np.inf]
    )
    names = [f"up to {end} ms" for end in BUCKETS] + [f"over {BUCKETS[-1]} ms"]
    return [{"time": name, "answers": int(count)} for name, count in zip(names, counts, strict=True)]


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    lines = [[*rows[0]], ["---:"] * len(rows[0]), *([str(cell) for cell in row.values()] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="digits-dit")
    parser.add_argument("--measurements", help="a file of `elt-zoo plan --measurements`, read or written")
    parser.add_argument("--core", help="of the server, as `taskset -c` takes it")
    parser.add_argument("--clients", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--pause", type=float, default=2.0, help="mean seconds between an answer and the next request")
    parser.add_argument("--out", type=Path, help="a path without suffix, for a .csv and a .md")
    arguments = parser.parse_args()
    with server(arguments) as (process, address):
        with urllib.request.urlopen(address) as answer:
            offer = json.load(answer)
        fastest, before = max(offer["fastest_ms"][str(count)] for count in range(1, 5)), os.getloadavg()[0]
        outcomes = asyncio.run(load(arguments, address, fastest))
        process.send_signal(signal.SIGTERM)
        code = process.wait(60)
    rows = summary(outcomes, fastest)
    where = environment("starlette", "uvicorn")
    text = (
        f"{arguments.clients} clients for {arguments.seconds:g} s, pausing {arguments.pause:g} s on average; "
        f"{arguments.model}; the server ended with code {code}; load before {before:.1f}.\n\n{where}\n\n"
        f"{markdown(rows)}\n\n{markdown(histogram(outcomes))}\n"
    )
    print(text)
    if arguments.out is not None:
        arguments.out.with_suffix(".md").write_text(f"# Serving\n\nMade by `python benchmarks/serving.py`.\n\n{text}")
        write_csv(arguments.out.with_suffix(".csv"), rows, "starlette", "uvicorn")


if __name__ == "__main__":
    main()
