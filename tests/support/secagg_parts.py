"""Parts of sealed rounds for tests: names, a cheap signature, rosters, configurations."""

from __future__ import annotations

import enum
import hashlib
import hmac
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import numpy as np

from boltz_protocol import codec, weights
from boltz_protocol import messages as m
from boltz_protocol.encoding import plan_encoding
from boltz_protocol.errors import SignatureInvalid
from boltz_protocol.ids import ClientId, KeyId, SessionId
from boltz_protocol.keystream import Keystream
from boltz_protocol.statement import RSA_PSS_SHA256, Statement, signed_bytes
from tests.support import samples

MESH = "mini"


class Phase(enum.IntEnum):
    """After which phase a client is gone; it takes part in all before."""

    NOTHING = 0
    ADVERTISED = 1
    REVEALED = 2
    DEALT = 3
    UPLOADED = 4
    SIGNED = 5
    RELEASED = 6


class NotEnough(Exception):
    """The server gave the attempt up, as it should."""


def client_id(index: int) -> ClientId:
    return ClientId(hashlib.sha256(b"client%d" % index).hexdigest()[:32])


def session_id(index: int) -> SessionId:
    return SessionId(hashlib.sha256(b"session%d" % index).hexdigest()[:32])


def certificate(index: int) -> bytes:
    """Not one: nothing here looks into it."""
    return b"certificate %d" % index


def fingerprint(index: int) -> str:
    return hashlib.sha256(certificate(index)).hexdigest()


def _tag(name: str, statement_bytes: bytes) -> bytes:
    return hmac.digest(b"key of " + name.encode(), statement_bytes, "sha256")


def cheap_sign(name: ClientId, type: str, payload: bytes) -> Statement:
    """Stands for RSA-PSS: who does not call this cannot make it, by agreement."""
    key_id = KeyId(name)
    covered = signed_bytes(type=type, payload=payload, key_id=key_id, algorithm=RSA_PSS_SHA256)
    return Statement(type, payload, key_id, RSA_PSS_SHA256, _tag(name, covered))


def cheap_verify(entry: m.RosterEntry, statement: Statement) -> bytes:
    covered = signed_bytes(
        type=statement.type,
        payload=statement.payload,
        key_id=statement.key_id,
        algorithm=statement.algorithm,
    )
    if not hmac.compare_digest(statement.signature, _tag(entry.client_id, covered)):
        raise SignatureInvalid("not this client's signature")
    return statement.payload


def stream_of(seed: int) -> Callable[[int], bytes]:
    """Random bytes that are the same each time: graphs then are too."""
    stream = Keystream(hashlib.sha256(b"%d" % seed).digest())

    def draw(size: int) -> bytes:
        out = np.empty(size, np.uint8)
        stream.fill(out)
        return out.tobytes()

    return draw


def make_configuration(
    raw_roster: Sequence[bytes],
    *,
    coordinates: int,
    min_survivors: int,
    corrupt_fraction: float = 0.0,
    dropout_fraction: float = 0.0,
    adversary: m.Adversary = m.Adversary.SEMI_MALICIOUS,
    noise_multiplier: float = 0.0,
    grouping: m.Grouping | None = None,
) -> m.RoundConfiguration:
    entries = [codec.parse_roster_entry(raw) for raw in raw_roster]
    root = weights.root(
        [
            weights.WeightLeaf(e.index, e.client_id, hashlib.sha256(raw).digest(), e.weight)
            for raw, e in zip(raw_roster, entries, strict=True)
        ]
    )
    encoding = plan_encoding(
        clip_norm_l2=1.0,
        noise_multiplier=noise_multiplier,
        cohort_max=len(entries),
        coordinates=coordinates,
    )
    return replace(
        samples.configuration(),
        mesh_id=MESH,
        mode=m.RoundMode.GROUPED if grouping else m.RoundMode.SEALED,
        parameters=coordinates,
        lanes=(),
        scale=2.0**encoding.scale_log2,
        bound_l2=encoding.bound_l2,
        noise_multiplier=noise_multiplier,
        privacy=m.PRIVACY_CLIENT_DP if noise_multiplier else m.PRIVACY_NONE,
        roster_root=root.hash,
        roster_size=len(entries),
        total_weight=root.total,
        max_weight=max(e.weight for e in entries),
        min_survivors=min_survivors,
        secure_aggregation=m.SecureAggregation(corrupt_fraction, dropout_fraction, adversary),
        grouping=grouping,
    )


def make_roster(weight_of: Iterable[int]) -> list[bytes]:
    return [
        codec.encode_roster_entry(
            m.RosterEntry(
                index=index,
                client_id=client_id(index),
                session_id=session_id(index),
                weight=weight,
                sample_bucket=3,
                quality_bucket=3,
                check_in=samples.STATEMENT,
                certificate_chain_der=(certificate(index),),
            )
        )
        for index, weight in enumerate(weight_of)
    ]
