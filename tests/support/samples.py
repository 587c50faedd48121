"""Well-formed messages to start from; a test changes the one field it is about."""

from __future__ import annotations

from boltz_protocol import messages as m
from boltz_protocol.ids import ClientId, KeyId, ModelId, RoundId, SessionId
from boltz_protocol.statement import Statement

MESH = "mini"
ROUND = RoundId("aa" * 16)
CLIENT = ClientId("bb" * 16)
SESSION = SessionId("cc" * 16)
KEY = KeyId("dd" * 16)
MODEL = ModelId("toy")
NOW_MS = 1_795_000_000_000
STATEMENT = Statement("boltz_mesh.v1.Sample", b"payload", KEY, "ed25519", b"s" * 64)


def check_in() -> m.CheckIn:
    return m.CheckIn(MESH, CLIENT, SESSION, MODEL, 5, 3, "eu-west", NOW_MS)


def encryption_key() -> m.EncryptionKey:
    return m.EncryptionKey(MESH, KEY, b"spki", NOW_MS, NOW_MS + 1000)


def manifest() -> m.ModelManifest:
    return m.ModelManifest(
        mesh_id=MESH,
        model_id=MODEL,
        version=2,
        parent_version=1,
        parent_sha256=b"p" * 32,
        round_id=ROUND,
        sha256=b"m" * 32,
        size_bytes=100,
        tensors=(m.TensorSpec("w", (3, 2)), m.TensorSpec("b", ())),
        optimizer_state_sha256=b"",
        plan_revision=1,
        created_at_ms=NOW_MS,
    )


def configuration() -> m.RoundConfiguration:
    return m.RoundConfiguration(
        mesh_id=MESH,
        round_id=ROUND,
        attempt=1,
        model_id=MODEL,
        mode=m.RoundMode.OPEN,
        base_version=2,
        model_sha256=b"m" * 32,
        parameters=7,
        lanes=(m.Lane("loss", 0.5),),
        clip_norm=1.0,
        scale=1024.0,
        bound_l2=2000,
        noise_multiplier=1.5,
        privacy=m.PRIVACY_CLIENT_DP,
        epsilon_budget=2.0,
        delta=1e-5,
        roster_root=b"r" * 32,
        roster_size=3,
        total_weight=30,
        max_weight=16,
        min_survivors=2,
        deadline_ms=NOW_MS + 60_000,
        encryption_key=STATEMENT,
        hyperparameters={"rate": 0.1, "epochs": 3, "kind": "sgd", "shuffle": True},
        plan_revision=4,
        optimizer_state_sha256=b"o" * 32,
        created_at_ms=NOW_MS,
    )


def roster_entry() -> m.RosterEntry:
    return m.RosterEntry(1, CLIENT, SESSION, 16, 5, 3, STATEMENT, 0, (b"leaf", b"issuer"))


def offer() -> m.RoundOffer:
    return m.RoundOffer(
        configuration=STATEMENT,
        roster_entry=b"entry",
        proof=(m.RosterSibling(b"h" * 32, 14),),
        trace=m.TraceContext("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "a=b"),
    )


def outcome() -> m.RoundOutcome:
    return m.RoundOutcome(ROUND, 1, m.Phase.PUBLISHED, "", 3, counted=True)


def update_manifest() -> m.UpdateManifest:
    return m.UpdateManifest(
        round_id=ROUND,
        attempt=1,
        client_id=CLIENT,
        session_id=SESSION,
        configuration_sha256=b"c" * 32,
        encryption_key_id=KEY,
        wrapped_content_key=b"w" * 384,
        key_commitment=b"k" * 32,
        sha256=b"d" * 32,
        size_bytes=40,
        weight=16,
        at_ms=NOW_MS,
    )


def receipt() -> m.UpdateReceipt:
    return m.UpdateReceipt(MESH, ROUND, 1, CLIENT, b"d" * 32, NOW_MS, 7)
