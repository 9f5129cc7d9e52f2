"""What a peer stores in the DHT under its own name is signed with the key of its peer id: nobody declares for another.

A record of several peers has an entry for each, under its peer id (`hive.membership`, `hive.indices`). One without the
signature of that peer is neither stored nor read. What all peers write alike, the charter, has no owner: that only
peers of the run can write it, is what `hive.doors` sees to. No other key is without owners: what is stored whole under
it would take the place of all its entries.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from hivemind.dht.crypto import DHTRecord, RecordValidatorBase
from hivemind.dht.routing import DHTID
from hivemind.proto import crypto_pb2
from hivemind.utils import MSGPackSerializer

_LENGTHS = struct.Struct("!HH")  # of the signature and of the public key, at the end of an entry
_OF_NOBODY = MSGPackSerializer.dumps(None)  # what stands for the name in a record that is no dictionary
_ED25519_KEY = b"\x08\x01\x12\x40"  # libp2p's protobuf of a private key: its type, then seed and public key
_ED25519_ID = b"\x00\x24\x08\x01\x12\x20"  # a peer id that holds the public key itself
_SHA256_ID = b"\x12\x20"  # one that is the digest of a public key
_PADDING = padding.PSS(mgf=padding.MGF1(hashes.SHA256()), salt_length=padding.PSS.DIGEST_LENGTH)


def make_identity(path: Path) -> None:
    """Write the key of a new peer id into a file."""
    key = Ed25519PrivateKey.generate()
    path.write_bytes(_ED25519_KEY + key.private_bytes_raw() + key.public_key().public_bytes_raw())


class SignedRecords(RecordValidatorBase):
    """Signs this peer's entries, and checks those of all.

    Args:
        identity: the key of this peer's id, as libp2p writes it: Ed25519 or RSA.
        of_all: keys of the records that have no owner.
    """

    def __init__(self, identity: bytes, *, of_all: Sequence[str] = ()) -> None:
        self._identity, self._of_all = identity, {DHTID.generate(source=key).to_bytes() for key in of_all}
        if identity.startswith(_ED25519_KEY):
            key = Ed25519PrivateKey.from_private_bytes(identity[4:36])
            self._public, self._own = b"", _ED25519_ID + key.public_key().public_bytes_raw()
        else:
            public = self._rsa().public_key()
            self._public = public.public_bytes(
                serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
            )
            self._own = _id_of(self._public)

    def sign_value(self, record: DHTRecord) -> bytes:
        if _owner(record) != self._own:
            return record.value  # it will not pass, here or elsewhere
        content = _content(record, record.value)
        if self._public:
            signature = self._rsa().sign(content, _PADDING, hashes.SHA256())
        else:
            signature = Ed25519PrivateKey.from_private_bytes(self._identity[4:36]).sign(content)
        return record.value + signature + self._public + _LENGTHS.pack(len(signature), len(self._public))

    def validate(self, record: DHTRecord) -> bool:
        if record.subkey == _OF_NOBODY:
            return record.key in self._of_all
        owner, parts = _owner(record), _parts(record.value)
        if owner is None or parts is None:
            return False
        value, signature, public = parts
        content = _content(record, value)
        try:
            if owner.startswith(_ED25519_ID) and not public:
                Ed25519PublicKey.from_public_bytes(owner[len(_ED25519_ID) :]).verify(signature, content)
                return True
            key = _public_key(public)
            if not isinstance(key, RSAPublicKey) or _id_of(public) != owner:
                return False
            key.verify(signature, content, _PADDING, hashes.SHA256())
        except (InvalidSignature, ValueError):
            return False
        return True

    def strip_value(self, record: DHTRecord) -> bytes:
        parts = None if record.subkey == _OF_NOBODY else _parts(record.value)
        return record.value if parts is None else parts[0]

    @property
    def priority(self) -> int:
        """The last to sign, so the first to look."""
        return 10

    def _rsa(self) -> Any:
        data = crypto_pb2.PrivateKey.FromString(self._identity).data
        return serialization.load_der_private_key(data, password=None)


def _public_key(public: bytes) -> Any:
    """Raises ValueError for what is none."""
    try:
        return serialization.load_der_public_key(public)
    except Exception as error:  # whatever cryptography makes of bytes that others have sent
        raise ValueError("no public key") from error


def _owner(record: DHTRecord) -> bytes | None:
    """The peer id under which an entry stands."""
    try:
        name = MSGPackSerializer.loads(record.subkey)
    except Exception:  # whatever msgpack raises for bytes that are none of its own
        return None
    return name if isinstance(name, bytes) else None


def _parts(value: bytes) -> tuple[bytes, bytes, bytes] | None:
    """What was stored, its signature, and the public key that goes with it."""
    if len(value) < _LENGTHS.size:
        return None
    of_signature, of_public = _LENGTHS.unpack(value[-_LENGTHS.size :])
    begin = len(value) - _LENGTHS.size - of_signature - of_public
    if begin < 0:
        return None
    return value[:begin], value[begin : begin + of_signature], value[begin + of_signature : -_LENGTHS.size]


def _content(record: DHTRecord, value: bytes) -> bytes:
    """What is signed: the entry, where it stands, and for how long."""
    content: bytes = MSGPackSerializer.dumps([record.key, record.subkey, value, record.expiration_time])
    return content


def _id_of(public: bytes) -> bytes:
    """The peer id of an RSA key."""
    wrapped = crypto_pb2.PublicKey(key_type=crypto_pb2.RSA, data=public).SerializeToString()
    return _SHA256_ID + hashlib.sha256(wrapped).digest()
