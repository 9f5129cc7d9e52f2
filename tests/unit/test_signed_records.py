"""Nobody declares for another: an entry of the DHT is taken only with the signature of the peer whose name it has."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import base58
import pytest
from hivemind.dht.crypto import DHTRecord
from hivemind.dht.routing import DHTID
from hivemind.p2p import P2P, PeerID
from hivemind.utils import MSGPackSerializer, get_dht_time
from hypothesis import given
from hypothesis import strategies as st

from ray_gossip.hive.readable_records import ReadableRecords
from ray_gossip.hive.signed_records import SignedRecords, make_identity


@pytest.fixture(params=["ed25519", "rsa"], scope="module")
def peer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[SignedRecords, bytes]:
    path = tmp_path_factory.mktemp("identity") / "key"
    if request.param == "rsa":
        P2P.generate_identity(str(path))
    else:
        make_identity(path)
    records = SignedRecords(path.read_bytes())
    return records, records._own


def record_of(owner: object, value: bytes = b"value") -> DHTRecord:
    return DHTRecord(b"key", MSGPackSerializer.dumps(owner), value, 1234.5)


def test_a_peers_own_entry_passes_and_comes_out_as_it_was(peer: tuple[SignedRecords, bytes]) -> None:
    records, own = peer
    record = record_of(own)
    signed = replace(record, value=records.sign_value(record))
    assert records.validate(signed)
    assert records.strip_value(signed) == b"value"
    for changed in (
        replace(signed, key=b"other"),
        replace(signed, expiration_time=9999.0),
        replace(signed, value=b"w" + signed.value[1:]),
        replace(signed, subkey=MSGPackSerializer.dumps(b"x" + own[1:])),
        record,
    ):
        assert not records.validate(changed)


def test_an_entry_for_another_peer_does_not_pass(peer: tuple[SignedRecords, bytes], tmp_path: Path) -> None:
    records, own = peer
    make_identity(tmp_path / "other")
    other = SignedRecords((tmp_path / "other").read_bytes())
    record = record_of(own)
    assert not records.validate(replace(record, value=other.sign_value(record)))
    signed_as_itself = other.sign_value(record_of(other._own))
    assert not records.validate(replace(record, value=signed_as_itself))


def test_rsa_ids_are_those_of_hivemind(tmp_path: Path) -> None:
    P2P.generate_identity(str(tmp_path / "key"))
    content = (tmp_path / "key").read_bytes()
    assert SignedRecords(content)._own == PeerID.from_identity(content).to_bytes()


def test_an_ed25519_id_begins_as_libp2p_writes_it(tmp_path: Path) -> None:
    make_identity(tmp_path / "key")
    assert base58.b58encode(SignedRecords((tmp_path / "key").read_bytes())._own).startswith(b"12D3KooW")


def test_only_the_charter_belongs_to_nobody(tmp_path: Path) -> None:
    make_identity(tmp_path / "key")
    records = SignedRecords((tmp_path / "key").read_bytes(), of_all=["charter"])
    record = replace(record_of(None), key=DHTID.generate(source="charter").to_bytes())
    assert records.sign_value(record) == records.strip_value(record) == record.value
    assert records.validate(record)
    assert not records.validate(replace(record, key=DHTID.generate(source="run.members").to_bytes()))


@given(subkey=st.binary(max_size=80), value=st.binary(max_size=400))
def test_what_is_malformed_does_not_pass_and_raises_nothing(subkey: bytes, value: bytes) -> None:
    records = SignedRecords(b"\x08\x01\x12\x40" + bytes(64))
    record = DHTRecord(b"key", subkey, value, 1.0)
    assert not records.validate(record)
    records.strip_value(record)


def test_an_endless_record_is_not_taken() -> None:
    for size, is_taken in ((1000, True), (100_000, False)):
        value = MSGPackSerializer.dumps(bytes(size))
        assert ReadableRecords().validate(DHTRecord(b"key", b"", value, get_dht_time() + 60)) is is_taken
