"""The order in which blocks are decoded."""

from __future__ import annotations

from quickdecode.plan.blocks import Block, Segment, ending_together


def block(number: int, cost: int) -> Block:
    return Block((Segment(key=number, stop=0, cost=cost, rows={number: [number]}),))


def test_large_blocks_do_not_come_last() -> None:
    costs = [5, 90, 10, 10, 20, 30, 40, 10, 10, 100]
    blocks = [block(number, cost) for number, cost in enumerate(costs)]
    ordered = ending_together(blocks, workers=2)
    assert [each.cost for each in ordered] == [5, 90, 100, 40, 30, 20, 10, 10, 10, 10]
    assert {id(each) for each in ordered} == {id(each) for each in blocks}
    assert ending_together(blocks[:1], workers=16) == blocks[:1]
