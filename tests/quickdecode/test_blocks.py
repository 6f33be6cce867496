"""The order in which blocks are decoded, and frames handed from one thread to others."""

from __future__ import annotations

from threading import Event, Thread

import pytest

from quickdecode.decode.handover import Handover
from quickdecode.plan.blocks import Block, Segment, ending_together
from quickdecode.threads.pool import Cancelled


def block(number: int, cost: int) -> Block:
    return Block((Segment(key=number, stop=0, cost=cost, rows={number: [number]}),))


def test_large_blocks_do_not_come_last() -> None:
    costs = [5, 90, 10, 10, 20, 30, 40, 10, 10, 100]
    blocks = [block(number, cost) for number, cost in enumerate(costs)]
    ordered = ending_together(blocks, workers=2)
    assert [each.cost for each in ordered] == [5, 90, 100, 40, 30, 20, 10, 10, 10, 10]
    assert {id(each) for each in ordered} == {id(each) for each in blocks}
    assert ending_together(blocks[:1], workers=16) == blocks[:1]


def test_every_frame_is_handed_to_one_of_the_writers() -> None:
    handover, stop = Handover(2), Event()
    taken: list[list[int]] = [[], []]

    def write(number: int) -> None:
        taken[number] += [rows[0] for _, rows in handover.taken(stop)]

    writers = [Thread(target=write, args=(number,), daemon=True) for number in range(2)]
    for writer in writers:
        writer.start()
    for row in range(50):
        handover.give(None, [row], stop)
    handover.end(stop)
    for writer in writers:
        writer.join(10)
        assert not writer.is_alive()
    assert sorted(taken[0] + taken[1]) == list(range(50))
    assert taken == [sorted(taken[0]), sorted(taken[1])]


def test_who_hands_over_or_takes_does_not_outlive_a_stop() -> None:
    handover, stop = Handover(1), Event()
    handover.give(None, [0], stop)
    handover.give(None, [1], stop)
    stop.set()
    with pytest.raises(Cancelled):
        handover.give(None, [2], stop)
    with pytest.raises(Cancelled):
        next(handover.taken(stop))
