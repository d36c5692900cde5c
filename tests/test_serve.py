"""Sampling over HTTP: what is sampled together, what is promised, what is refused, and how the server ends."""

import asyncio
import base64
import concurrent.futures
import dataclasses
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from command_line import run
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from starlette.testclient import TestClient

from elt_zoo import Generator, save
from elt_zoo.anytime import Latency, Planner, Quality, StepQuality
from elt_zoo.families import DiTConfig
from elt_zoo.sampling import table_budget
from elt_zoo.serve import (
    Draining,
    InvalidRequest,
    Overloaded,
    SampleRequest,
    Service,
    Way,
    make_application,
    make_service,
    read_request,
)
from elt_zoo.serve._pace import Pace
from elt_zoo.serve._schedule import Menu, Schedule

LOOPS, STEPS, SIZES = 3, 4, (1, 4)


@pytest.fixture(scope="module")
def generator():
    sizes: dict[str, Any] = {"dim": 16, "num_layers": 1, "max_loops": LOOPS, "num_heads": 2, "num_classes": 5}
    config = DiTConfig(shape=(4, 4, 1), **sizes)
    # Layers that start as the identity, and a head that starts at zero, would hide loops and labels.
    model = jax.tree.map(
        lambda leaf: leaf + 0.3 * jax.random.normal(jax.random.key(1), leaf.shape), config.build(key=jax.random.key(0))
    )
    return Generator(model, config, settings=dataclasses.replace(config.sampler_settings(), steps=4))


def planner_of(generator: Any, latencies, *, steps=(STEPS,)):
    """More steps are better than fewer, and so are loops."""
    qualities = [
        StepQuality(gaps=((0.2, 0.1, 0.0),) * count, one=10.0 - count, least=8.0 - count, full=8.0 - count)
        for count in steps
    ]
    quality = Quality(measure="distance", by_steps=tuple(qualities), error=None, samples=0, sets=0)
    return Planner(generator=generator, guidance=1.0, latencies=latencies, quality=quality)


def latencies_of(second=1.0):
    """A step takes 1 ms and a loop 1 ms, so that four steps take 8 to 16 ms; four samples take twice as long as one."""
    return tuple(
        Latency(batch=size, fixed=0.0, per_step=cost, per_loop=cost, error=0.0, tail=1.0)
        for size, cost in zip(SIZES, (1e-3 * second, 2e-3 * second), strict=True)
    )


@pytest.fixture(scope="module")
def compiled(generator):
    """A service whose programs are compiled and timed; others share them."""
    return make_service(
        dataclasses.replace(generator, planner=planner_of(generator, latencies_of())), batches=SIZES, repeats=1
    )


def service_of(generator, *, queue=8, second=1.0):
    """A service that takes every batch to last as long as it says."""
    latencies = latencies_of(second)
    planned = dataclasses.replace(generator, planner=planner_of(generator, latencies))
    return Service(planned, latencies, steps=(STEPS,), queue=queue)


# What is sampled together.


def schedule_of(*, capacity=100, patience=0.05):
    planner = planner_of(None, latencies_of(), steps=(2, 4))  # 4 to 16 ms
    menu = Menu(latencies_of(), planner)
    return Schedule(menu, capacity=capacity, patience=patience, reserve=0.0)


def asked(milliseconds=None, *, labels=1, way=None):
    return SampleRequest(labels=(0,) * labels, seed=0, milliseconds=milliseconds, way=way)


def admit(schedule, *requests, at=0.0):
    return [schedule.admit(request, arrived=at, start=at) for request in requests]


def test_a_request_alone_gets_the_best_plan_that_is_in_time():
    for milliseconds, way in ((4, Way(2, (1, 1))), (6, Way(2, (2, 2))), (1000, Way(4, (3,) * 4))):
        schedule = schedule_of()
        admit(schedule, asked(milliseconds))
        batch = schedule.next(0.0)
        assert (batch.size, batch.late) == (1, 0)
        assert (batch.option.way.steps, sum(batch.option.way.loops)) == (way.steps, sum(way.loops))


def test_quality_gives_way_evenly_where_others_would_be_late():
    schedule = schedule_of()
    admit(schedule, asked(30), *[asked(40)] * 8)
    batches = []
    now = 0.0
    while (batch := schedule.next(now)) is not None:
        now += batch.option.seconds
        batches.append(batch)
        assert batch.late == 0 and all(now <= ticket.due for ticket in batch.tickets)
    # Two full batches and one more at 8 ms for a sample, where the best plan would take 16 and the fastest 4.
    assert [batch.size for batch in batches] == [4, 4, 1]
    assert [batch.option.seconds for batch in batches] == pytest.approx([16e-3, 16e-3, 8e-3])


def test_an_urgent_request_goes_first_and_alone_where_sharing_would_cost_quality():
    schedule = schedule_of()
    patient, urgent = admit(schedule, asked(1000), asked(16))
    first, second = schedule.next(0.0), schedule.next(0.016)
    assert first.tickets == (urgent,) and second.tickets == (patient,)
    best = schedule.menu.options(None, 1)[-1]
    assert first.option == best and second.option.quality == best.quality


def test_equally_good_batches_are_as_large_as_can_be():
    schedule = schedule_of()
    admit(schedule, *[asked(1000)] * 6, asked(1000, labels=3))
    assert [len(schedule.next(0.0).tickets) for _ in range(3)] == [4, 2, 1]


def test_only_requests_for_one_way_share_a_batch():
    schedule, way = schedule_of(), Way(2, (1, 2))
    admit(schedule, asked(way=way), asked(1000), asked(way=Way(2, (2, 1))), asked(way=way))
    batch = schedule.next(0.0)
    assert [ticket.request.way for ticket in batch.tickets] == [way, way] and batch.option.way == way
    assert batch.option.seconds == pytest.approx(2 * 5e-3)


def test_what_would_break_a_promise_is_refused_with_the_time_that_it_would_take():
    schedule = schedule_of()
    admit(schedule, *[asked(25, labels=4)] * 3)  # each takes at least 8 ms
    with pytest.raises(Overloaded, match=r"cannot be sampled in 30 ms .*: 3 requests wait. It would take about 32 ms"):
        admit(schedule, asked(30, labels=4))
    with pytest.raises(Overloaded) as refused:
        admit(schedule, asked(10, labels=4))  # would be in time, and make others late
    assert refused.value.reason == "too_late" and refused.value.seconds == pytest.approx(0.032)
    admit(schedule, asked(32.1, labels=4))
    full = schedule_of(capacity=2)
    admit(full, asked(1000), asked(1000))
    with pytest.raises(Overloaded, match="2 requests wait already, as many as may"):
        admit(full, asked(1000))


def test_a_request_that_is_late_already_is_sampled_as_fast_as_can_be():
    schedule = schedule_of()
    admit(schedule, asked(20))
    batch = schedule.next(0.1)
    assert batch.late == 1 and batch.option == schedule.menu.options(None, 1)[0]
    admit(schedule, asked(20), at=0.1)
    schedule.next(0.1)
    late, _ = admit(schedule, asked(20)), admit(schedule, asked(30), at=0.1)  # others are taken all the same
    assert schedule.waiting[0] is late[0]


def test_a_machine_that_is_busy_is_given_more_time():
    pace = Pace()
    assert pace.at(0.0) == 1.0
    for number in range(100):
        pace.observe(0.1 * number, 2.0 if number % 2 else 0.5)
    assert pace.at(10.0) == 2.0
    assert pace.at(60.0) == 1.0  # what is long ago is forgotten
    schedule = schedule_of()
    schedule.pace = 2.0
    with pytest.raises(Overloaded, match="It would take about 8 ms"):
        admit(schedule, asked(7))
    admit(schedule, asked(12))
    batch = schedule.next(0.0)
    assert batch.late == 0 and batch.seconds == pytest.approx(12e-3) == 2 * batch.option.seconds


requests = st.tuples(
    st.integers(0, 10),  # ms after the one before
    st.one_of(st.none(), st.integers(4, 120)),
    st.integers(1, 4),
    st.sampled_from([Way(2, (1, 1)), Way(4, (3,) * 4)]),
)


@given(st.lists(requests, max_size=40))
def test_every_promise_is_kept_if_batches_last_as_long_as_they_should(arrivals):
    """The server in a time of its own: one batch after the other, and requests that arrive meanwhile."""
    schedule = schedule_of(capacity=20)
    free, now, taken, sampled = 0.0, 0.0, [], []

    def sample_until(time):
        nonlocal free
        while free <= time and (batch := schedule.next(max(free, now))) is not None:
            free = max(free, now) + batch.option.seconds
            sampled.extend((ticket, free) for ticket in batch.tickets)
            assert sum(len(ticket.request.labels) for ticket in batch.tickets) <= batch.size

    for gap, milliseconds, labels, way in arrivals:
        sample_until(now + 1e-3 * gap)
        now += 1e-3 * gap
        request = asked(milliseconds, labels=labels, way=way if milliseconds is None else None)
        try:
            taken.append(schedule.admit(request, arrived=now, start=max(now, free)))
        except Overloaded as refused:
            assert refused.seconds > 0
    sample_until(float("inf"))
    assert {ticket for ticket, _ in sampled} == set(taken) and len(sampled) == len(taken)
    assert [(ticket, end) for ticket, end in sampled if ticket.promised and end > ticket.due + 1e-9] == []


# What is sampled.


def sample_together(service, *wanted):
    async def ask():
        await service.start()
        answers = await asyncio.gather(*map(service.submit, wanted))
        await service.drain()
        return answers

    return asyncio.run(ask())


def alone(generator, request, way, batch):
    """The samples of a request, without a server."""
    key = jax.random.key(request.seed)
    keys = jax.vmap(lambda number: jax.random.fold_in(key, number))(np.arange(len(request.labels)))
    return generator.sample(request.labels, key=keys, loops=table_budget(way.loops), steps=way.steps, batch_size=batch)


def test_samples_do_not_depend_on_what_else_is_in_the_batch(generator, compiled, caplog):
    way = Way(4, (1, 2, 3, 1))
    wanted = [SampleRequest(labels=labels, seed=seed, way=way) for labels, seed in (((1, 4), 7), ((2,), 2**32 - 1))]
    with jax.log_compiles():
        answers = sample_together(service_of(generator), *wanted)
    assert "_draw" not in caplog.text  # all was compiled before
    caplog.clear()
    for request, answer in zip(wanted, answers, strict=True):
        assert (answer.batch, answer.way, answer.late) == (4, way, False)
        # The same program gives the same bits; another size of batch multiplies in another order.
        np.testing.assert_array_equal(answer.pixels, alone(generator, request, way, 4))
        np.testing.assert_allclose(answer.pixels, alone(generator, request, way, 1), atol=1e-5)
    assert np.abs(answers[0].pixels[0] - answers[0].pixels[1]).max() > 0.01


def test_a_deadline_buys_the_plan_for_its_time(generator, compiled):
    service = service_of(generator, second=100.0)  # 0.8 to 1.6 s
    hurried, patient = (
        sample_together(service_of(generator, second=100.0), SampleRequest(labels=(1,), seed=3, milliseconds=time))[0]
        for time in (850.0, 5000.0)
    )
    assert hurried.way == Way(4, (1,) * 4) and patient.way == Way(4, (3,) * 4)
    assert not hurried.late and hurried.waited < 0.5
    np.testing.assert_array_equal(patient.pixels, alone(generator, patient.request, patient.way, 1))
    assert service.offer.fastest[1] == pytest.approx(800) and service.offer.fastest[3] == pytest.approx(1600)


def test_a_server_measures_what_it_serves(compiled, generator):
    offer = compiled.offer
    assert (offer.steps, offer.most_labels, offer.usual) == ((STEPS,), 4, Way(STEPS, (LOOPS,) * STEPS))
    assert offer.fastest[1] > 0 and offer.fastest[2] == offer.fastest[4]
    with pytest.raises(ValueError, match=r"`make_service\(batches=\(0, 4\), .* must be at least 1"):
        make_service(generator, batches=(0, 4))


# What is refused.


WRONG = [
    ("3", 422, None, "A request is a JSON object"),
    ("[", 400, None, "The request is no JSON"),
    ('{"labels": [' + "0," * 40_000 + "0]}", 413, None, "longer than 65536 bytes"),
    ("{}", 422, "labels", "must be a class or a list of classes"),
    ('{"labels": []}', 422, "labels", "must be a class or a list"),
    ('{"labels": [true]}', 422, "labels", "must be a class or a list"),
    ('{"labels": [6]}', 422, "labels", "holds 6, but there are the classes 0 to 4, and 5 for no class"),
    ('{"labels": [-1]}', 422, "labels", "holds -1"),
    ('{"labels": [0, 0, 0, 0, 0]}', 422, "labels", "holds 5 classes: ask for at most 4"),
    ('{"labels": 0, "seed": -1}', 422, "seed", "must be a whole number from 0 to 4294967295"),
    ('{"labels": 0, "seed": 1.5}', 422, "seed", "must be a whole number"),
    ('{"labels": 0, "steps": 3}', 422, "steps", "must be one of 4, which are compiled"),
    ('{"labels": 0, "loops": 0}', 422, "loops", "must be a whole number from 1 to 6, or a list of them for the 4"),
    ('{"labels": 0, "loops": [1, 2]}', 422, "loops", "for the 4 steps"),
    ('{"labels": 0, "loops": 7}', 422, "loops", "from 1 to 6"),
    ('{"labels": 0, "milliseconds": NaN}', 422, "milliseconds", "must be a positive number"),
    ('{"labels": 0, "milliseconds": -5}', 422, "milliseconds", "must be a positive number"),
    ('{"labels": 0, "milliseconds": "40"}', 422, "milliseconds", "must be a positive number"),
    (
        '{"labels": 0, "milliseconds": 7.9}',
        422,
        "milliseconds",
        "the fastest plan for 1 sample(s), which takes up to 8",
    ),
    ('{"labels": 0, "milliseconds": 40, "loops": 1}', 422, "loops", "and `milliseconds` cannot both be given"),
    ('{"labels": 0, "colour": 1}', 422, "colour", "is no field of a request: there are labels, seed,"),
]


@pytest.fixture(scope="module")
def client(generator, compiled):
    with TestClient(make_application(service_of(generator), name="tiny")) as client:
        yield client


@pytest.mark.parametrize(("body", "status", "field", "said"), WRONG)
def test_a_wrong_request_is_refused_by_the_name_of_its_field(client, body, status, field, said):
    answer = client.post("/sample", content=body)
    error = answer.json()["error"]
    assert (answer.status_code, error["field"], error["reason"]) == (status, field, "invalid")
    assert said in error["message"]


def test_without_a_planner_there_are_no_deadlines(generator):
    offer = Service(generator, latencies_of(), steps=(4,)).offer
    with pytest.raises(InvalidRequest, match="`milliseconds` needs a planner, and this server has none"):
        read_request({"labels": 0, "milliseconds": 1e6}, offer)
    assert read_request({"labels": 0}, offer).way == Way(4, (LOOPS,) * 4)


def test_answers_are_pictures_with_what_was_done(client, generator):
    body = {"labels": [1, 2], "seed": 5, "steps": 4, "loops": [1, 2, 1, 3]}
    answer = client.post("/sample", json=body).json()
    assert {name: answer[name] for name in body} == body
    assert (answer["batch"], answer["late"]) == (4, False) and answer["waited_ms"] >= 0 and answer["sampled_ms"] > 0
    expected = alone(generator, SampleRequest(labels=(1, 2), seed=5), Way(4, (1, 2, 1, 3)), 4)
    for picture, image in zip(expected, answer["images"], strict=True):
        shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(image))), np.float32)
        np.testing.assert_allclose(shown / 127.5 - 1.0, np.clip(picture[:, :, 0], -1.0, 1.0), atol=0.005)
    shown = client.post("/sample", json=body, headers={"accept": "image/png"})
    assert shown.headers["content-type"] == "image/png" and shown.headers["elt-loops"] == "[1, 2, 1, 3]"
    assert Image.open(io.BytesIO(shown.content)).size == (2 * 6, 6)  # side by side, with a frame around each


def test_the_server_says_what_it_offers_and_how_it_does(client):
    offered = client.get("/").json()
    assert (offered["model"], offered["steps"], offered["fastest_ms"]["1"]) == ("tiny", [4], pytest.approx(8))
    assert client.get("/health").json() == {"status": "ready"}
    client.post("/sample", json={"labels": 0})
    told = client.get("/metrics").text
    assert re.search(r'elt_zoo_requests_total\{outcome="sampled"\} [1-9]', told)
    assert re.search(r'elt_zoo_answer_seconds_bucket\{le="0\.1"\} ', told) and "elt_zoo_queue_length 0.0" in told


def held(service):
    """Holds a service's batches back; returns what lets them go, and what tells that one has begun."""
    begun, go, sample = threading.Event(), threading.Event(), service._pixels

    def wait(batch):
        begun.set()
        assert go.wait(60)
        return sample(batch)

    service._pixels = wait
    return begun, go


def test_a_full_queue_refuses_and_a_server_that_drains_answers_what_it_has_taken(generator, compiled):
    service = service_of(generator, queue=2)
    begun, go = held(service)
    way = {"labels": 0, "loops": 1}
    with TestClient(make_application(service, name="tiny")) as client, concurrent.futures.ThreadPoolExecutor() as pool:
        taken = [pool.submit(client.post, "/sample", json=way)]
        assert begun.wait(60)
        taken += [pool.submit(client.post, "/sample", json=way) for _ in range(2)]
        while "elt_zoo_queue_length 2.0" not in client.get("/metrics").text:
            pass
        refused = client.post("/sample", json=way)
        error = refused.json()["error"]
        assert (refused.status_code, error["reason"]) == (429, "queue_full") and error["after_ms"] > 0
        assert int(refused.headers["retry-after"]) >= 1 and "2 requests wait already" in error["message"]

        drained = service.drain_soon()
        while client.get("/health").status_code != 503:
            pass
        assert client.get("/health").json() == {"status": "draining"}
        late = client.post("/sample", json=way)
        assert (late.status_code, late.json()["error"]["reason"]) == (503, "draining")
        assert late.headers["connection"] == "close" and not drained.done()
        go.set()
        assert [each.result(60).status_code for each in taken] == [200] * 3
        drained.result(60)
    with pytest.raises(Draining, match="takes nothing new"):
        asyncio.run(service.submit(SampleRequest(labels=(0,), seed=0, way=Way(2, (1, 1)))))


def test_a_busy_server_says_when_a_request_could_be_sampled(generator, compiled):
    service = service_of(generator, second=100.0)
    begun, go = held(service)
    with TestClient(make_application(service, name="tiny")) as client, concurrent.futures.ThreadPoolExecutor() as pool:
        first = pool.submit(client.post, "/sample", json={"labels": [0] * 4, "milliseconds": 1700})  # takes 1600
        assert begun.wait(60)
        refused = client.post("/sample", json={"labels": 0, "milliseconds": 810})
        error = refused.json()["error"]
        assert (refused.status_code, error["reason"]) == (429, "too_late")
        assert 1600 < error["after_ms"] <= 2400 and refused.headers["retry-after"] in ("2", "3")
        go.set()
        assert first.result(60).status_code == 200
        again = client.post("/sample", json={"labels": 0, "milliseconds": 3000})
        assert again.status_code == 200 and again.json()["loops"] == [3] * 4


def test_a_batch_that_fails_is_an_error_and_the_server_goes_on(generator, compiled):
    service = service_of(generator)
    sample, failures = service._pixels, [FloatingPointError("samples hold values that are not finite")]

    def fail_once(batch):
        if failures:
            raise failures.pop()
        return sample(batch)

    service._pixels = fail_once
    with TestClient(make_application(service, name="tiny")) as client:
        failed = client.post("/sample", json={"labels": 0})
        assert failed.status_code == 500 and failed.json()["error"]["reason"] == "failed"
        assert "could not be made: samples hold values that are not finite" in failed.json()["error"]["message"]
        assert client.post("/sample", json={"labels": 0}).status_code == 200


def test_a_client_that_goes_while_its_batch_fails_takes_nobody_along(generator):
    service = service_of(generator)
    sample, began, gone = service._pixels, threading.Event(), threading.Event()

    def fail_when_it_has_gone(batch):
        began.set()
        assert gone.wait(30)
        service._pixels = sample
        raise FloatingPointError("samples hold values that are not finite")

    async def leave_and_ask_again():
        await service.start()
        service._pixels = fail_when_it_has_gone
        request = SampleRequest(labels=(0,), seed=0, way=service.offer.usual)
        first = asyncio.create_task(service.submit(request))
        await asyncio.to_thread(began.wait, 30)
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        gone.set()
        answer = await asyncio.wait_for(service.submit(request), 60)
        await service.drain()
        return answer

    assert asyncio.run(leave_and_ask_again()).batch >= 1


# The command.


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--port", 70_000), "`--port 70000` must be from 0 to 65535"),
        (("--queue", 0), "`--queue 0` must be at least 1"),
        (("--batches", 0, 4), "`--batches 0 4` must be sizes of at least 1"),
        (("--patience", "nan"), "`--patience nan` must be a positive number"),
        (("--port", 0, "--model", "no-such-model"), "no-such-model"),
    ],
)
def test_wrong_options_are_said_in_one_line(arguments, said):
    finished = run("serve", *arguments, check=False)
    assert finished.code == 2 and said in finished.errors and finished.errors.count("\n") == 1


def test_an_answer_need_not_wait_for_the_acknowledgement_of_its_first_packet():
    from elt_zoo.serve import bind

    async def connected():
        """What asyncio does to the server's end of a connection."""
        seen = asyncio.get_running_loop().create_future()

        def accepted(reader, writer):
            sock = writer.get_extra_info("socket")
            seen.set_result(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            writer.close()

        async with await asyncio.start_server(accepted, sock=bind("127.0.0.1", 0)) as server:
            _, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            found = await seen
            writer.close()
            return found

    assert asyncio.run(connected()) != 0


def test_a_port_that_is_taken_is_said_in_one_line():
    from elt_zoo.serve import bind

    with bind("127.0.0.1", 0) as taken:
        taken.listen()
        port = taken.getsockname()[1]
        finished = run("serve", "--port", port, check=False)
    assert finished.code == 1 and f"127.0.0.1:{port} cannot be served on" in finished.errors


@pytest.mark.parametrize("module", ["starlette.applications", "prometheus_client"])
def test_without_the_extra_the_error_says_what_to_install(generator, monkeypatch, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=r"pip install 'elt_zoo\[serve\]'"):
        make_application(service_of(generator), name="tiny")


@pytest.mark.slow
def test_sigterm_ends_the_command_when_all_that_it_took_is_answered(generator, tmp_path):
    model = save(tmp_path / "model", generator)
    command = [sys.executable, "-m", "elt_zoo", "serve", "--model", str(model), "--port", "0", "--batches", "1"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    ) as process:
        try:
            assert process.stdout is not None
            ready = next(line for line in process.stdout if line.startswith("Ready at "))
            address = re.search(r"http://\S+", ready)[0]
            assert json.loads(read(f"{address}/health")) == {"status": "ready"}
            with concurrent.futures.ThreadPoolExecutor(48) as pool:
                asked = [pool.submit(sample_over_http, address, number % 5) for number in range(48)]
                while 'outcome="sampled"' not in read(f"{address}/metrics"):
                    pass
                process.send_signal(signal.SIGTERM)
                statuses = [each.result() for each in asked]
            # No connection broke: those who came too late were told so, or met nobody.
            assert set(statuses) <= {200, 503, None} and statuses.count(200) > 1
            assert process.wait(60) == 0
            assert "Finishing what waits ..." in process.stdout.read()
        finally:
            process.kill()


def read(address):
    with urllib.request.urlopen(address, timeout=60) as answer:
        return answer.read().decode()


def sample_over_http(address, label):
    """The status of the answer; `None` if nobody listens."""
    body = json.dumps({"labels": label, "loops": 2 * LOOPS}).encode()
    try:
        with urllib.request.urlopen(f"{address}/sample", body, timeout=60) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        with error:
            return error.code
    except urllib.error.URLError as error:
        if not isinstance(error.reason, ConnectionRefusedError):
            raise
        return None
