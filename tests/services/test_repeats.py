"""What is remembered of answers, and what is let go."""

import asyncio

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
