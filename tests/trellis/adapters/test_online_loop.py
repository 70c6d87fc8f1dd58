"""An event loop's own way to Redis: a real server, and what goes wrong with one."""

import asyncio
import os
import signal
import socket

import pytest
from redis import Redis
from redis.exceptions import ConnectionError as Away
from redis.exceptions import ResponseError
from redis.exceptions import TimeoutError as Late

from trellis.adapters.online_loop import LoopRedis, can_ask
from trellis.adapters.online_redis import Circuit, pack


@pytest.fixture
def place(redis_server):
    return {"host": "127.0.0.1", "port": redis_server[0], "db": 0, "socket_timeout": 10.0}


@pytest.fixture
def client(redis_server):
    with Redis(port=redis_server[0]) as client:
        client.flushall()
        yield client


def running(place, talk, circuit=None):
    """Talk to Redis on a loop of its own."""

    async def main():
        redis = LoopRedis(place, circuit or Circuit())
        try:
            return await talk(redis)
        finally:
            redis.close()
            await asyncio.sleep(0.01)

    return asyncio.run(main())


def test_each_gets_its_own_answers_however_many_ask_together(place, client):
    for i in range(300):
        client.hset(f"k{i}", mapping={"a": b"x" * i, "b": i})

    async def talk(redis):
        async def one(i):
            got = await redis.ask(pack("HMGET", f"k{i}", "a", "b", "c") + pack("GET", f"none{i}"), 2)
            assert got == [[b"x" * i, str(i).encode(), None], None]

        for _ in range(3):
            await asyncio.gather(*(one(i) for i in range(300)))

    running(place, talk)


def test_an_error_is_the_one_askers_alone(place, client):
    client.set("text", "1")

    async def talk(redis):
        return await asyncio.gather(
            redis.ask(pack("GET", "text"), 1),
            redis.ask(pack("HMGET", "text", "a"), 1),
            redis.ask(pack("GET", "text"), 1),
            return_exceptions=True,
        )

    first, wrong, last = running(place, talk)
    assert first == last == [b"1"]
    assert isinstance(wrong, ResponseError)


def test_a_caller_who_goes_takes_no_others_answer(place, client):
    client.mset({"a": "1", "b": "2"})

    async def talk(redis):
        gone = asyncio.ensure_future(redis.ask(pack("GET", "a"), 1))
        await asyncio.sleep(0)
        stays = asyncio.ensure_future(redis.ask(pack("GET", "b"), 1))
        gone.cancel()
        return await stays

    assert running(place, talk) == [b"2"]


def test_a_closed_connection_is_opened_again_and_the_question_asked_again(place, client):
    async def talk(redis):
        await redis.ask(pack("SET", "a", "1"), 1)
        client.client_kill_filter(_type="normal", skipme=True)
        return await redis.ask(pack("GET", "a"), 1)

    assert running(place, talk) == [b"1"]


def test_a_redis_that_is_away_raises_at_once_and_is_left_alone():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        circuit = Circuit()

        async def talk(redis):
            loop = asyncio.get_running_loop()
            with pytest.raises(Away, match="reached"):
                await redis.ask(pack("PING"), 1)
            began = loop.time()
            with pytest.raises(Away, match="a moment ago"):
                await redis.ask(pack("PING"), 1)
            return loop.time() - began

        running({"host": "127.0.0.1", "port": taken.getsockname()[1]}, talk, circuit)


def test_a_hung_redis_is_given_up_and_found_again(place, redis_server, client, monkeypatch):
    from trellis.adapters import online_redis

    monkeypatch.setattr(online_redis, "_REST_SECONDS", 0.05)

    async def talk(redis):
        await redis.ask(pack("SET", "a", "1"), 1)
        os.kill(redis_server[1].pid, signal.SIGSTOP)
        try:
            both = await asyncio.gather(*(redis.ask(pack("GET", "a"), 1) for _ in range(2)), return_exceptions=True)
            assert [type(error) for error in both] == [Late, Late]
            with pytest.raises(Away, match="a moment ago"):
                await redis.ask(pack("GET", "a"), 1)
            await asyncio.sleep(0.1)
            trial = asyncio.ensure_future(redis.ask(pack("GET", "a"), 1))
            await asyncio.sleep(0)
            with pytest.raises(Away, match="a moment ago"):  # one alone tries
                await redis.ask(pack("GET", "a"), 1)
            with pytest.raises((Late, Away)):
                await trial
        finally:
            os.kill(redis_server[1].pid, signal.SIGCONT)
        await asyncio.sleep(0.1)
        return await redis.ask(pack("GET", "a"), 1)

    assert running({**place, "socket_timeout": 1.0}, talk) == [b"1"]


def test_it_introduces_itself(place, redis_server, client):
    client.execute_command("ACL", "SETUSER", "reader", "on", ">secret word", "~*", "+@all")
    client.execute_command("SELECT", 3)
    client.set("where", "three")

    async def talk(redis):
        return await redis.ask(pack("GET", "where"), 1)

    known = {**place, "db": 3, "username": "reader", "password": "secret word"}
    assert running(known, talk) == [b"three"]
    for wrong in ({"password": "no"}, {"db": 99}):
        with pytest.raises(Away, match="refuses"):
            running({**known, **wrong}, talk)


def test_what_is_no_redis_is_not_believed():
    async def main():
        async def nonsense(reader, writer):
            await reader.read(1)
            writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            writer.close()

        server = await asyncio.start_server(nonsense, "127.0.0.1", 0)
        redis = LoopRedis({"host": "127.0.0.1", "port": server.sockets[0].getsockname()[1]}, Circuit())
        with pytest.raises(Away, match="something else"):
            await redis.ask(pack("PING"), 1)
        server.close()
        await asyncio.sleep(0.01)

    asyncio.run(main())


def test_one_loop_after_another(place, client):
    circuit = Circuit()
    redis = LoopRedis(place, circuit)

    async def talk():
        got = await redis.ask(pack("PING"), 1)
        redis.close()
        await asyncio.sleep(0.01)
        return got

    assert asyncio.run(talk()) == asyncio.run(talk()) == [b"PONG"]


def test_what_only_the_client_can_do_is_left_to_it():
    assert can_ask({"host": "h", "port": 1, "db": 0, "password": "p"})
    assert not can_ask({"host": "h", "port": 1, "ssl": True})
