"""Bytes are counted once each, and in the round that they belong to."""

from __future__ import annotations

from ray_gossip.hive.allreduce import Traffic


def test_last_answers_of_a_round_count_in_the_next_one_that_averages_not_in_one_that_sends_nothing() -> None:
    traffic, counted = Traffic(), []
    for late, own, averages in ((0, 100, True), (7, 0, False), (0, 0, False), (3, 50, True), (0, 20, True)):
        traffic.bytes_sent += late
        traffic.begin_round()
        traffic.bytes_sent += own
        counted.append(traffic.take(with_late=averages))
    assert counted == [100, 0, 0, 60, 20]
