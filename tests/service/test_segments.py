"""The files of the local log: whole records come back, and damage costs only itself."""

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.segments import MARK, Place, Segments

START = Place(0, 0, 0)
PAYLOADS = [b"one", b"two", b"", MARK * 3, b"five"]


def made(folder: Path, *groups: list[bytes], segment_bytes: int = 1 << 20) -> Segments:
    segments = Segments(folder, segment_bytes=segment_bytes)
    segments.begin(1)
    for group in groups:
        with segments.locked():
            segments.sync(segments.append(end(segments), group))
    return segments


def end(segments: Segments) -> Place:
    records, place = segments.read(START)
    while records:
        records, place = segments.read(place)
    return place


def told(segments: Segments) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    place = START
    while True:
        records, place = segments.read(place)
        if not records:
            return found
        found |= {record.number: record.payload for record in records}


def newest(folder: Path) -> Path:
    return max(folder.glob("*.log"))


def test_records_come_back_in_their_order_over_segments(tmp_path: Path) -> None:
    segments = made(tmp_path, PAYLOADS, [b"six"], [b"seven"], segment_bytes=60)
    assert told(segments) == dict(enumerate([*PAYLOADS, b"six", b"seven"], 1))
    assert segments.names() == [1, 6], "a segment ends once it is full"
    assert segments.place(6) == Place(6, 0, 6)
    assert (
        segments.place(3)
        == segments.read(START)[0][2].place
        == segments.read(START)[0][1].following
    )
    assert segments.place(99) == end(segments)


def test_records_longer_than_what_is_read_at_once(tmp_path: Path) -> None:
    long = os.urandom(5000)
    segments = made(tmp_path, [b"a", long, b"c"])
    records, place = segments.read(START, most=64)
    assert [record.payload for record in records] == [b"a"]
    assert segments.read(place, most=64)[0][0].payload == long


@pytest.mark.parametrize("cut", range(1, 20))
def test_a_torn_end_is_cut_off_and_written_over(tmp_path: Path, cut: int) -> None:
    segments = made(tmp_path, [b"one"], [b"two"])
    path = newest(tmp_path)
    os.truncate(path, path.stat().st_size - cut)
    assert told(segments) == {1: b"one"}
    with segments.locked():
        segments.append(end(segments), [b"again"])
    assert told(segments) == {1: b"one", 2: b"again"}


def test_what_a_power_cut_left_behind_the_end_is_not_taken_for_records(tmp_path: Path) -> None:
    segments = made(tmp_path, [b"one"])
    with newest(tmp_path).open("ab") as file:
        file.write(bytes(4096))
    assert told(segments) == {1: b"one"}
    with segments.locked():
        segments.append(end(segments), [b"two"])
    assert told(segments) == {1: b"one", 2: b"two"}


@settings(deadline=None, derandomize=True)
@given(place=st.integers(0, 10_000), bit=st.integers(0, 7))
def test_a_flipped_bit_costs_its_own_record_alone(
    tmp_path_factory: pytest.TempPathFactory, place: int, bit: int
) -> None:
    folder = tmp_path_factory.mktemp("log")
    segments = made(folder, PAYLOADS, [b"six"])
    path = newest(folder)
    data = bytearray(path.read_bytes())
    place %= len(data)
    data[place] ^= 1 << bit
    path.write_bytes(data)
    expected = dict(enumerate([*PAYLOADS, b"six"], 1))
    begins = [
        record.place.offset for record in made(folder / "whole", PAYLOADS, [b"six"]).read(START)[0]
    ]
    hit = sum(place >= begin for begin in begins)
    del expected[hit]
    assert told(segments) == expected


def test_a_damaged_end_of_a_full_segment_does_not_hold_up_the_next(tmp_path: Path) -> None:
    segments = made(tmp_path, [b"a" * 80, b"b"], [b"c"], segment_bytes=60)
    first = min(tmp_path.glob("*.log"))
    os.truncate(first, first.stat().st_size - 1)
    assert told(segments) == {1: b"a" * 80, 3: b"c"}


def test_segments_are_dropped_whole_and_never_the_newest(tmp_path: Path) -> None:
    segments = made(tmp_path, [b"a" * 80, b"b"], [b"c" * 80], [b"d"], segment_bytes=60)
    assert segments.names() == [1, 3, 4]
    assert segments.drop(1, before=2**40) == 1
    assert segments.drop(2, before=0) == 1
    assert segments.drop(99, before=2**40) == 4
    assert told(segments) == {4: b"d"}
