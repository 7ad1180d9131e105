import asyncio

import pytest

from starec_agents.llm import pool as module
from starec_agents.llm.pool import Limit, NoServer, Pool
from starec_env.errors import EndpointError


async def holding(pool: Pool, count: int) -> list[tuple[Limit, int]]:
    return [await pool.acquire() for _ in range(count)]


async def settled() -> None:
    for _ in range(3):
        await asyncio.sleep(0)


async def test_the_limit_doubles_with_each_round_of_answers_up_to_the_most() -> None:
    pool, rounds = Pool([Limit(50, 8)]), []
    crowd = [asyncio.create_task(pool.acquire()) for _ in range(200)]
    for _ in range(4):
        await settled()
        rounds.append(pool.in_flight)
        for _ in range(pool.in_flight):
            pool.release((pool.limits[0], 0), answered=True)
    assert rounds == [8, 16, 32, 50]
    for task in crowd:
        task.cancel()


async def test_the_limit_also_doubles_as_time_passes_without_a_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RAMP_S", 0.01)
    pool = Pool([Limit(50, 8)])
    crowd = [asyncio.create_task(pool.acquire()) for _ in range(200)]
    await settled()
    assert pool.in_flight == 8
    while pool.in_flight < 50:
        await asyncio.sleep(0.005)
    assert pool.limits[0].limit == 50
    for task in crowd:
        task.cancel()


async def test_one_refusal_ends_the_doubling_by_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RAMP_S", 0.01)
    pool = Pool([Limit(50, 8)])
    crowd = [asyncio.create_task(pool.acquire()) for _ in range(200)]
    await settled()
    pool.release((pool.limits[0], 0), congested=True)
    await asyncio.sleep(0.05)
    assert pool.in_flight == pool.limits[0].limit == 8
    for task in crowd:
        task.cancel()


async def cut(pool: Pool, pause: float | None = None) -> None:
    """Refuse as many requests as it takes to have the limit cut."""
    before, tries = pool.limits[0].limit, 0
    while pool.limits[0].limit == before:
        pool.release(await pool.acquire(), congested=True, pause=pause)
        tries += 1
        assert tries < 20


async def test_after_the_first_cut_the_limit_grows_by_an_eighth_a_round() -> None:
    pool = Pool([Limit(64, 32)])
    await cut(pool)
    crowd = [asyncio.create_task(pool.acquire()) for _ in range(40)]
    await settled()
    for _ in range(16):
        pool.release((pool.limits[0], 1), answered=True)
    assert pool.limits[0].limit == 18
    for task in crowd:
        task.cancel()


async def test_the_limit_does_not_grow_while_it_is_not_the_bottleneck() -> None:
    pool = Pool([Limit(64, 8)])
    for _ in range(100):
        pool.release(await pool.acquire(), answered=True)
    assert pool.limits[0].limit == 8


async def test_a_burst_of_refusals_halves_the_limit_once() -> None:
    pool = Pool([Limit(64, 32)])
    for ticket in await holding(pool, 32):
        pool.release(ticket, congested=True)
    assert pool.limits[0].limit == 16
    await cut(pool)
    assert pool.limits[0].limit == 8


async def test_refusals_now_and_then_do_not_hold_the_limit_down() -> None:
    pool = Pool([Limit(256)])
    crowd = [asyncio.create_task(pool.acquire()) for _ in range(5000)]
    for number in range(4000):
        await settled()
        refused = number % 20 == 0
        pool.release((pool.limits[0], 0), answered=not refused, congested=refused)
    assert pool.limits[0].limit == 256
    for task in crowd:
        task.cancel()


async def test_the_limit_never_falls_below_one_and_recovers() -> None:
    pool = Pool([Limit(4)])
    for _ in range(50):
        pool.release(await pool.acquire(), congested=True)
    assert pool.limits[0].limit == 1
    for _ in range(200):
        for ticket in await holding(pool, int(pool.limits[0].limit)):
            pool.release(ticket, answered=True)
    assert pool.limits[0].limit == 4


async def test_those_who_wait_are_served_in_order_and_the_cancelled_are_skipped() -> None:
    pool, served = Pool([Limit(1)]), []

    async def visit(number: int) -> None:
        ticket = await pool.acquire()
        served.append(number)
        await asyncio.sleep(0)
        pool.release(ticket)

    tasks = [asyncio.create_task(visit(number)) for number in range(6)]
    await settled()
    tasks[3].cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert served == [0, 1, 2, 4, 5]
    assert pool.in_flight == 0


async def test_one_who_comes_again_goes_first() -> None:
    pool = Pool([Limit(1)])
    ticket = await pool.acquire()
    first, again = asyncio.create_task(pool.acquire()), asyncio.create_task(pool.acquire(again=True))
    await settled()
    pool.release(ticket)
    await settled()
    assert again.done()
    assert not first.done()
    first.cancel()


async def test_a_slot_granted_to_one_who_is_cancelled_at_that_moment_is_passed_on() -> None:
    pool = Pool([Limit(1)])
    ticket = await pool.acquire()
    first, second = asyncio.create_task(pool.acquire()), asyncio.create_task(pool.acquire())
    await settled()
    pool.release(ticket)
    first.cancel()
    await asyncio.wait_for(second, 5)
    assert first.cancelled()
    assert pool.in_flight == 1


async def test_a_pause_asked_for_by_an_overloaded_server_holds_everyone_back_and_then_ends() -> None:
    pool = Pool([Limit(8)])
    pool.release(await pool.acquire(), congested=True, pause=60)  # one refusal alone holds nobody back
    await cut(pool, pause=0.02)
    waiting = [asyncio.create_task(pool.acquire()) for _ in range(3)]
    await settled()
    assert pool.in_flight == 0
    await asyncio.wait_for(asyncio.gather(*waiting), 5)
    assert pool.in_flight == 3


async def test_when_two_calls_saw_nobody_answered_all_who_wait_and_come_get_the_error() -> None:
    pool, error = Pool([Limit(1)]), EndpointError("it is down", "timeout")
    await pool.acquire()
    waiting = [asyncio.create_task(pool.acquire()) for _ in range(3)]
    await settled()
    pool.give_up(error, answers=0, seconds=60)
    await settled()
    assert not any(task.done() for task in waiting)
    pool.give_up(error, answers=0, seconds=60)
    outcomes = await asyncio.gather(*waiting, return_exceptions=True)
    assert [str(outcome) for outcome in outcomes] == ["it is down"] * 3
    with pytest.raises(EndpointError, match="it is down") as caught:
        await pool.acquire()
    assert caught.value.kind == "timeout"


async def test_calls_that_fail_while_others_are_answered_do_no_harm() -> None:
    pool, error = Pool([Limit(4)]), EndpointError("poison", "server")
    for _ in range(5):
        before = pool.answers
        pool.give_up(error, before, seconds=60)
        pool.release(await pool.acquire(), answered=True)
        pool.give_up(error, before, seconds=60)
    assert await pool.acquire() == (pool.limits[0], 0)


async def test_the_least_busy_server_is_taken_and_equals_take_turns() -> None:
    limits = [Limit(4), Limit(4)]
    pool = Pool(limits)
    taken = [await pool.acquire() for _ in range(4)]
    assert [limits.index(limit) for limit, _ in taken] == [0, 1, 0, 1]
    pool.release(taken[1])
    assert (await pool.acquire())[0] is limits[1]


async def test_a_server_to_avoid_is_taken_only_where_no_other_is_in_use() -> None:
    limits = [Limit(1), Limit(1)]
    pool = Pool(limits)
    place = await pool.acquire(avoid=[limits[0]])
    assert place[0] is limits[1]
    waiting = asyncio.create_task(pool.acquire(avoid=[limits[0]]))
    behind = asyncio.create_task(pool.acquire())
    await settled()
    assert behind.done() and (await behind)[0] is limits[0]  # who waits for the other server holds nobody up
    assert not waiting.done()
    pool.release(await behind)
    await settled()
    assert not waiting.done()
    pool.use(limits[1], False)
    await settled()
    assert (await waiting)[0] is limits[0]


async def test_without_a_server_in_use_who_waits_and_who_comes_is_told_so_until_one_is() -> None:
    limits = [Limit(1), Limit(1)]
    pool = Pool(limits)
    pool.use(limits[0], False)
    await pool.acquire()
    waiting = asyncio.create_task(pool.acquire())
    await settled()
    pool.use(limits[1], False)
    with pytest.raises(NoServer):
        await waiting
    with pytest.raises(NoServer):
        await pool.acquire()
    pool.use(limits[0], True)
    assert (await pool.acquire())[0] is limits[0]
