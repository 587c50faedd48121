"""Committed weights and configurations, as a client would check them."""

from __future__ import annotations

import hashlib

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from boltz_mesh.coordinator.configure import (
    FixedRoster,
    capped_weights,
    fix_roster,
    key_needed_until_ms,
    roster_weights,
)
from boltz_mesh.rounds.plan import Plan, plan_from_toml, validate_encoding
from boltz_mesh.rounds.plan_clipping import at_clip_norm
from boltz_mesh.services.attempts import leaf_of
from boltz_mesh.storage.check_ins import CheckIn
from boltz_mesh.storage.models import ModelState, ModelVersion, StoredBlob
from boltz_protocol import codec, limits, weights
from boltz_protocol import messages as m
from boltz_protocol.ids import (
    ClientId,
    KeyId,
    ModelId,
    RoundId,
    new_key_id,
    new_session_id,
)
from boltz_protocol.sealing import round_encoding
from boltz_protocol.statement import RSA_PSS_SHA256, Statement, digest, sign_ed25519
from tests.unit.rounds.rounds import parameters

WEIGHTS = st.lists(st.integers(1, 255), min_size=1, max_size=30)
SIGNER = Ed25519PrivateKey.generate()
KEY = Statement(m.ENCRYPTION_KEY, b"a key", new_key_id(), "ed25519", bytes(64))


@given(WEIGHTS, st.floats(0.01, 1))
def test_capped_weights_keep_the_cap_or_are_equal(values: list[int], cap: float) -> None:
    capped = capped_weights(values, cap)
    level = max(capped)
    assert capped == tuple(min(value, level) for value in values)
    if level > 1:
        assert max(capped) / sum(capped) <= cap * (1 + 1e-12)
    # The highest level that keeps the cap: nobody is lowered for nothing.
    if level < max(values):
        higher = tuple(min(value, level + 1) for value in values)
        assert max(higher) / sum(higher) > cap * (1 - 1e-12)


def test_equal_weights_where_the_cap_cannot_be_kept() -> None:
    assert capped_weights([255, 3], 0.4) == (1, 1)


def sign(type: str, payload: bytes) -> Statement:
    return sign_ed25519(type=type, payload=payload, private_key=SIGNER)


def check_in(index: int, sample_bucket: int) -> CheckIn:
    statement = Statement(m.CHECK_IN, b"spoken", new_key_id(), RSA_PSS_SHA256, bytes(384))
    return CheckIn(
        client_id=ClientId(f"{index:032x}"),
        model_id=ModelId("m"),
        session_id=new_session_id(),
        replica_id="r",
        sample_bucket=sample_bucket,
        quality_bucket=3,
        region="",
        protocol_min=1,
        protocol_max=1,
        statement=codec.encode_statement(statement),
        at_ms=1,
    )


PLAN = """\
model = "m"
mode = "open"
clip_norm = 0.5
privacy = "client-dp"
noise_multiplier = 2.0
weight_share_cap = 0.6
[budget]
epsilon = 4.0
delta = 1e-6
[cohort]
min = 2
target = 3
max = 5
[[tensors]]
name = "w"
shape = [10]
[[lanes]]
name = "loss"
scale = 0.1
[hyper_parameters]
epochs = 2
"""


def fixed_roster(plan: Plan, *trust_256: int) -> FixedRoster:
    """Three clients of sample buckets 10, 8 and 8; newcomers where nothing else is said."""
    base = ModelVersion(
        model_id=ModelId("m"),
        version=4,
        state=ModelState.PROMOTED,
        parent_version=None,
        round_id=None,
        weights=StoredBlob(b"\x01" * 32, b"\x02" * 32, b"wrapped"),
        size_bytes=100,
        kek_id=KeyId("00" * 16),
        manifest=b"",
        optimizer=StoredBlob(b"\x03" * 32, b"\x04" * 32, b"wrapped"),
        metrics={},
        created_at_ms=1,
        promoted_at_ms=1,
        promoted_by="ann",
    )
    params = parameters(round_id=RoundId("cd" * 16), model_id="m", base_version=4)
    roster = [check_in(7, 10), check_in(3, 8), check_in(5, 8)]
    known = trust_256 or (54, 54, 54)
    return fix_roster(
        roster,
        trust_256={c.client_id: trust for c, trust in zip(roster, known, strict=True)},
        parameters=params,
        plan=plan,
        base=base,
        encryption_key=KEY,
        chains={},
        mesh_id="demo",
        now_ms=5_000,
        sign=sign,
    )


def test_a_configuration_commits_to_the_roster() -> None:
    fixed = fixed_roster(plan_from_toml(PLAN))
    assert fixed.config_digest == digest(fixed.configuration)
    config = codec.parse_round_configuration(fixed.configuration.payload)
    # Equal trust cancels out: 255, 64 and 64; the cap of 0.6 lowers the first to 192.
    assert [entry.weight for entry in fixed.entries] == [192, 64, 64]
    assert (config.total_weight, config.max_weight, config.roster_size) == (320, 192, 3)
    assert config.weight_terms == m.WeightTerms(plan_from_toml(PLAN).sample_bucket_cap, 54)
    assert (config.model_sha256, config.optimizer_state_sha256) == (b"\x01" * 32, b"\x03" * 32)
    assert config.deadline_ms == fixed.deadline_ms == 25_000
    assert config.hyperparameters == {"epochs": 2}
    assert round_encoding(config).bound_l2 == config.bound_l2
    leaves = [leaf_of(entry) for entry in fixed.entries]
    committed = weights.SumNode(config.roster_root, config.total_weight)
    for entry, leaf, proof in zip(fixed.entries, leaves, weights.prove_all(leaves), strict=True):
        weights.verify(leaf, 3, proof, committed)
        assert leaf.entry_digest == hashlib.sha256(entry.entry).digest()
        told = codec.parse_roster_entry(entry.entry)
        assert (told.index, told.client_id, told.session_id, told.weight) == (
            entry.position,
            entry.client_id,
            entry.session_id,
            entry.weight,
        )
        assert told.check_in.payload == b"spoken"
        assert told.trust_256 == entry.trust_256 == 54
        weights.check_weight(told, config)
    assert [event.client for event in fixed.holds] == [e.client_id for e in fixed.entries]
    assert {(e.noise_multiplier, e.sensitivity) for e in fixed.holds} == {(2.0, config.bound_l2)}


def test_trust_weighs_relative_to_the_largest_in_the_roster() -> None:
    # The client with most data is the least trusted one: 255 * 54 / 228, and 64 * 114 / 228.
    fixed = fixed_roster(plan_from_toml(PLAN), 54, 114, 228)
    assert [entry.weight for entry in fixed.entries] == [61, 32, 64]
    assert [entry.trust_256 for entry in fixed.entries] == [54, 114, 228]
    config = codec.parse_round_configuration(fixed.configuration.payload)
    assert config.weight_terms is not None
    assert config.weight_terms.top_trust_256 == 228


@given(st.lists(st.tuples(st.integers(0, 31), st.integers(1, 256)), min_size=1, max_size=20))
def test_every_client_can_compute_its_weight_again(known: list[tuple[int, int]]) -> None:
    plan = plan_from_toml(PLAN)
    roster = [check_in(index, bucket) for index, (bucket, _) in enumerate(known)]
    trusts: dict[str, int] = {
        c.client_id: trust for c, (_, trust) in zip(roster, known, strict=True)
    }
    committed = roster_weights(roster, trusts, plan)
    top = max(committed)
    for one, weight in zip(roster, committed, strict=True):
        uncapped = weights.weight(
            sample_bucket=one.sample_bucket,
            quality_bucket=one.quality_bucket,
            trust_256=weights.relative_trust(trusts[one.client_id], max(trusts.values())),
            sample_bucket_cap=plan.sample_bucket_cap,
        )
        assert weight == min(uncapped, top)


def test_adaptive_clipping_adds_the_indicators_lane_at_the_rounds_clip_norm() -> None:
    plan = plan_from_toml(PLAN + "[adaptive_clipping]\nbit_share = 0.25\n")
    for clip_norm in (0.5, 0.3, 0.0007):
        moved = at_clip_norm(plan, clip_norm)
        fixed = fixed_roster(moved)
        config = codec.parse_round_configuration(fixed.configuration.payload)
        assert config.clip_norm == clip_norm
        assert config.clip_indicator == "clip-indicator"
        assert config.lanes == (
            m.Lane("loss", 0.1),
            m.Lane("clip-indicator", 0.25 * clip_norm),
        )
        # Scale and bound follow the clip norm, and the hold follows the bound.
        assert round_encoding(config).coordinates == 12
        assert config.bound_l2 == validate_encoding(moved).bound_l2
        assert {hold.sensitivity for hold in fixed.holds} == {config.bound_l2}
    assert (
        codec.parse_round_configuration(
            fixed_roster(plan_from_toml(PLAN)).configuration.payload
        ).clip_indicator
        == ""
    )


@pytest.mark.parametrize(
    ("collecting_ms", "until_ms"),
    [(20_000, 1_000 + 20_000 + 2 * 3_000 + 5_000), (12 * 3600 * 1000, None)],
)
def test_the_key_outlives_the_fold(collecting_ms: int, until_ms: int | None) -> None:
    long = {"aggregating_ms": 12 * 3600 * 1000} if until_ms is None else {}
    params = parameters(collecting_ms=collecting_ms, **long)
    latest = 1_000 + limits.SERVER_KEY_LIFETIME_MS
    assert key_needed_until_ms(params, 1_000) == (latest if until_ms is None else until_ms)
