"""What is remembered of answers, and what is let go."""

import asyncio
import threading

import pytest

from services.prediction import repeats
from services.prediction.repeats import Repeats
from trellis.errors import RequestError


def answering(value=b"answer"):
    async def make():
        return value

    return make


async def hung():
    await asyncio.Event().wait()


def test_one_that_hangs_keeps_no_answers_alive_and_is_still_known(monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(repeats.time, "monotonic", lambda: clock[0])

    async def scene():
        memory = Repeats(seconds=10.0, max_bytes=5_000)
        waiting = asyncio.create_task(memory.once("m", "hangs", b"body", hung))
        await asyncio.sleep(0)
        for i in range(50):
            await memory.once("m", f"id-{i}", b"body", answering(b"x" * 500))
        # What is kept is at most the limit, and what was answered since the last look: 1,000 bytes each, as counted.
        assert await memory.once("m", "id-49", b"body", answering(b"new")) == (b"x" * 500, True)
        assert await memory.once("m", "id-0", b"body", answering(b"new")) == (b"new", False)
        assert memory._bytes <= 6_000
        clock[0] += 11
        assert await memory.once("m", "id-49", b"body", answering(b"new")) == (b"new", False)
        assert memory._bytes < 600, "the others are too old"
        with pytest.raises(RequestError, match="another body"):
            await memory.once("m", "hangs", b"other", answering())
        waiting.cancel()
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()

    asyncio.run(scene())


def test_one_that_failed_is_made_again():
    async def fails():
        raise ValueError("no")

    async def scene():
        memory = Repeats()
        with pytest.raises(ValueError, match="no"):
            await memory.once("m", "id", b"body", fails)
        assert await memory.once("m", "id", b"body", answering()) == (b"answer", False)
        assert await memory.once("m", "id", b"body", answering(b"new")) == (b"answer", True)

    asyncio.run(scene())


def test_whoever_joined_one_that_was_never_begun_has_it_made_anew():
    async def scene():
        memory = Repeats()
        queued = asyncio.get_running_loop().create_future()
        first = asyncio.create_task(memory.once("m", "id", b"body", lambda: queued))
        await asyncio.sleep(0)
        joined = [asyncio.create_task(memory.once("m", "id", b"body", answering(b"new"))) for _ in range(3)]
        await asyncio.sleep(0)
        queued.cancel()
        assert sorted(await asyncio.gather(*joined)) == [(b"new", False), (b"new", True), (b"new", True)]
        with pytest.raises(asyncio.CancelledError):
            await first

    asyncio.run(scene())


def test_whoever_goes_away_himself_makes_nothing_anew():
    async def scene():
        memory, made = Repeats(), []
        queued = asyncio.get_running_loop().create_future()
        first = asyncio.create_task(memory.once("m", "id", b"body", lambda: queued))
        await asyncio.sleep(0)
        joined = asyncio.create_task(memory.once("m", "id", b"body", lambda: made.append(1)))
        await asyncio.sleep(0)
        queued.cancel()
        joined.cancel()
        for task in (first, joined):
            with pytest.raises(asyncio.CancelledError):
                await task
        assert not made

    asyncio.run(scene())


def test_a_retry_that_joined_a_queued_request_outlives_the_first_callers_deadline(world, row):
    world.deploy(world.artifact("1"))
    gate, started, online = threading.Event(), [], world.shops.online

    def slow(*arguments):
        started.append(1)
        assert gate.wait(20)
        return online(*arguments)

    world.shops.online = slow
    path = "/v1/models/toy_linear/predict"

    async def scene():
        def ask(name, **headers):
            return asyncio.create_task(
                world.send("POST", path, json={"rows": [row()], "id": name}, headers=headers or None)
            )

        blocking = [ask(f"b{i}") for i in range(4)]
        while len(started) < 4:
            await asyncio.sleep(0.005)
        first = ask("r", **{"x-timeout-ms": "300"})
        while world.service.workers.waiting < 5:
            await asyncio.sleep(0.005)
        retry = ask("r")
        refused = await first
        gate.set()
        await asyncio.gather(*blocking)
        return refused, await retry

    refused, answered = world.runner.run(scene())
    assert (refused.status_code, "before its turn" in refused.text) == (503, True)
    assert answered.status_code == 200, answered.text
    assert world.logged()["id"].tolist().count("r#0") == 1
