"""What others store in this peer's DHT process takes a bounded part of its memory, and makes room when it expires."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hivemind.dht.crypto import DHTRecord
from hivemind.dht.validation import CompositeValidator

from ray_gossip.hive import bounded_records
from ray_gossip.hive.bounded_records import BoundedRecords
from ray_gossip.hive.readable_records import ReadableRecords

KB, DAY_S = 1024, 24 * 3600.0
NOW = 1e9


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [NOW]
    monkeypatch.setattr(bounded_records, "get_dht_time", lambda: now[0])
    monkeypatch.setattr(bounded_records, "monotonic", lambda: now[0])
    return now


def record(name: int, *, kilobytes: int = 7, expires: float = NOW + 15.0) -> DHTRecord:
    """With what is kept beside it 8 KB, and 2 to grow where it holds for minutes."""
    return DHTRecord(b"key", name.to_bytes(4, "big"), bytes(kilobytes * KB), expires)


def num_taken(records: BoundedRecords, names: range, *, expires: float) -> int:
    return sum(records.validate(record(name, expires=expires)) for name in names)


def test_so_many_are_taken_as_there_is_room_and_no_more_until_they_expire(clock: list[float]) -> None:
    records = BoundedRecords(most_soon=1000 * KB, most_long=100 * KB)
    assert num_taken(records, range(500), expires=NOW + 15.0) == 100
    clock[0] += 14.0
    assert num_taken(records, range(500, 600), expires=NOW + 29.0) == 0
    clock[0] += 2.0
    assert num_taken(records, range(500, 700), expires=NOW + 31.0) == 100


def test_who_has_room_keeps_it_when_it_renews_its_record_among_too_many(clock: list[float]) -> None:
    records = BoundedRecords(most_soon=1000 * KB)
    for step in range(200):
        clock[0] = NOW + step
        assert records.validate(record(0, expires=clock[0] + 15.0)), f"refused after {step} s"
        num_taken(records, range(1 + 200 * step, 201 + 200 * step), expires=clock[0] + 15.0)
        assert records.validate(record(0, expires=clock[0] + 15.5))


def test_what_holds_for_days_does_not_take_the_room_of_declarations(clock: list[float]) -> None:
    records = BoundedRecords(most_soon=1000 * KB, most_long=100 * KB)
    assert num_taken(records, range(1000), expires=NOW + 7 * DAY_S) == 12
    assert num_taken(records, range(1000, 2000), expires=NOW + 15.0) == 100


def test_a_record_that_grows_is_counted_as_it_is_then(clock: list[float]) -> None:
    records = BoundedRecords(most_soon=100 * KB)
    assert all(records.validate(record(0, expires=NOW + 1.0 + step / 100)) for step in range(50))
    assert records.validate(record(0, kilobytes=57, expires=NOW + 2.0))
    assert not records.validate(record(1, kilobytes=57))
    assert records.validate(record(1, kilobytes=37))
    assert not records.validate(record(0, kilobytes=60, expires=NOW + 3.0))


def test_an_earlier_record_which_is_not_stored_makes_no_room(clock: list[float]) -> None:
    records = BoundedRecords(most_soon=1000 * KB)
    names = range(100)
    assert num_taken(records, names, expires=NOW + 500.0) == 100
    assert all(records.validate(record(name, kilobytes=0, expires=NOW + 400.0)) for name in names)
    assert not records.validate(record(1000, kilobytes=0))


def test_a_declaration_that_grows_by_a_few_bytes_is_taken_in_a_full_room(clock: list[float]) -> None:
    records = BoundedRecords(most_soon=1000 * KB)
    assert records.validate(record(0))
    assert num_taken(records, range(1, 1000), expires=NOW + 500.0) == 99
    assert not records.validate(record(1000, kilobytes=0, expires=NOW + 16.0))
    grown = record(0, expires=NOW + 16.0)
    assert records.validate(replace(grown, value=grown.value + bytes(2000)))


def test_only_what_all_others_let_pass_takes_room() -> None:
    bounded = BoundedRecords(most_soon=100 * KB)
    both = CompositeValidator([bounded, ReadableRecords()])
    for name in range(100):
        assert not both.validate(DHTRecord(b"key", name.to_bytes(4, "big"), b"\xc1" * 10 * KB, 0.0))
    assert bounded.validate(record(0, kilobytes=97, expires=1.0))
