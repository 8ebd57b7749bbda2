"""The late proxy delays each answer once and changes no byte; a loss is of neighbours in time."""

import asyncio

import pytest

from bench.late_proxy import LateProxy
from bench.overlap import Window, figures, losses, report

ANSWERS = [b"100 continue\n", b"x" * 300_000 + b"\n"]


async def answer_twice(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    for line in ANSWERS:
        await reader.readline()
        writer.write(line)
        await writer.drain()
    writer.close()


@pytest.mark.parametrize(("late_seconds", "sleeps"), [(0.02, [0.02, 0.02]), (0.0, [])])
def test_each_answer_is_late_once_and_arrives_as_it_was_sent(
    late_seconds: float, sleeps: list[float]
) -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    async def talk() -> list[bytes]:
        upstream = await asyncio.start_server(answer_twice, "127.0.0.1", 0)
        host, port = upstream.sockets[0].getsockname()
        server = await LateProxy(host, port, lambda: late_seconds, sleep).listen()
        reader, writer = await asyncio.open_connection(
            *server.sockets[0].getsockname(), limit=2 * len(ANSWERS[1])
        )
        heard = []
        for asked in (b"may I?\n", b"body\n"):
            writer.write(asked)
            heard.append(await reader.readline())
        assert await reader.read() == b""
        writer.close()
        await writer.wait_closed()
        server.close()
        upstream.close()
        return heard

    assert asyncio.run(talk()) == ANSWERS
    assert slept == sleeps


def window(*, is_late: bool, speed: int) -> Window:
    return Window(is_late, 10.0, 10 * speed, 10, 5, 9.9)


def test_loss_is_between_neighbours_whichever_came_first() -> None:
    windows = [
        window(is_late=False, speed=100),
        window(is_late=True, speed=99),
        window(is_late=True, speed=45),
        window(is_late=False, speed=50),
    ]
    assert losses(windows) == pytest.approx([0.01, 0.1])
    assert "row steps a second lost: median +5.5% of 2 pairs" in "\n".join(report(windows, 20.0))
    with pytest.raises(ValueError, match="one window of each arm"):
        losses(windows[1:3])


def test_rows_of_a_step_batch_are_lost_on_any_machine() -> None:
    """Here the late window is the faster one, on a machine that others left alone meanwhile."""
    windows = [Window(False, 10.0, 1500, 100, 5, 10.0), Window(True, 10.0, 2940, 200, 5, 10.0)]
    assert losses(windows, lambda one: one.rows) == pytest.approx([0.02])
    assert "rows of a step batch lost: median +2.0% of 1 pairs" in "\n".join(report(windows, 20.0))


def test_lateness_costs_the_time_between_ticks() -> None:
    windows = [Window(False, 10.0, 100, 10, 5, 9.99), Window(True, 10.0, 98, 10, 5, 9.7)]
    idle, lost = figures(windows)
    assert (idle.figure, idle.holds) == ("s3_latency_cost", False)
    assert idle.value == pytest.approx(0.03)
    assert lost.value == pytest.approx(0.02)
