-- The mesh's tables. Times are Unix milliseconds (`*_at_ms`, `not_*_ms`), passed in by the caller.
-- Digests are raw SHA-256 (32 bytes). Private keys and content keys are stored wrapped only.

-- Clients. `client_id` is opaque and random; what could name a person or a firm is in
-- client_personal alone, the one table that erasing a client empties.
CREATE TABLE federated_clients (
    client_id               text PRIMARY KEY CHECK (client_id ~ '^[0-9a-f]{32}$'),
    status                  text NOT NULL
                            CHECK (status IN ('pending', 'active', 'suspended', 'revoked')),
    region                  text NOT NULL,
    public_key_spki         bytea NOT NULL,
    key_id                  text NOT NULL,
    certificate_chain       bytea,          -- PEM, leaf first; null until approved
    certificate_fingerprint bytea,          -- SHA-256 of the leaf's DER
    certificate_not_after_ms bigint,
    request_key_hash        bytea NOT NULL, -- of the enrolment request that made the row
    enrolled_at_ms          bigint NOT NULL,
    status_at_ms            bigint NOT NULL,
    status_by               text NOT NULL,
    status_reason           text NOT NULL DEFAULT '',
    processing_restricted   boolean NOT NULL DEFAULT false,
    CHECK ((certificate_chain IS NULL) = (certificate_fingerprint IS NULL)),
    CHECK ((certificate_chain IS NULL) = (certificate_not_after_ms IS NULL))
);
CREATE UNIQUE INDEX federated_clients_fingerprint
    ON federated_clients (certificate_fingerprint) WHERE certificate_fingerprint IS NOT NULL;
CREATE UNIQUE INDEX federated_clients_key ON federated_clients (key_id);
CREATE UNIQUE INDEX federated_clients_request ON federated_clients (request_key_hash);

CREATE TABLE client_personal (
    client_id    text PRIMARY KEY REFERENCES federated_clients ON DELETE CASCADE,
    display_name text NOT NULL,
    organisation text NOT NULL,
    contact      text NOT NULL
);

-- One-time tokens, stored hashed. The same request key may redeem one again after a lost reply.
CREATE TABLE enrollment_tokens (
    token_hash        bytea PRIMARY KEY CHECK (octet_length(token_hash) = 32),
    role              text NOT NULL CHECK (role IN ('client', 'operator', 'auditor')),
    subject           text,               -- operator's or auditor's name; null for clients
    client_id         text,               -- bound beforehand, or set when it is redeemed
    requires_approval boolean NOT NULL,
    created_by        text NOT NULL,
    created_at_ms     bigint NOT NULL,
    expires_at_ms     bigint NOT NULL,
    used_at_ms        bigint,
    request_key_hash  bytea,
    CHECK ((used_at_ms IS NULL) = (request_key_hash IS NULL)),
    CHECK ((role = 'client') = (subject IS NULL))
);

CREATE TABLE server_keys (
    key_id          text PRIMARY KEY,
    kind            text NOT NULL CHECK (kind IN ('encryption', 'statement', 'kek')),
    algorithm       text NOT NULL,
    public          bytea,                -- null for a symmetric key-encryption key
    wrapped_private bytea,                -- null once destroyed
    kek_id          text,                 -- what wraps it; null: the mesh's root secret
    statement       bytea,                -- signed announcement (serialized SignedStatement)
    certificate     bytea,                -- by the mesh's root, for statement keys
    not_before_ms   bigint NOT NULL,
    not_after_ms    bigint NOT NULL,
    destroyed_at_ms bigint,
    CHECK (not_before_ms < not_after_ms),
    CHECK ((wrapped_private IS NULL) = (destroyed_at_ms IS NOT NULL))
);
CREATE INDEX server_keys_kind ON server_keys (kind, not_after_ms);

CREATE TABLE plans (
    model_id      text NOT NULL,
    revision      integer NOT NULL CHECK (revision > 0),
    plan_json     jsonb NOT NULL,
    applied_by    text NOT NULL,
    applied_at_ms bigint NOT NULL,
    PRIMARY KEY (model_id, revision)
);

CREATE TABLE federated_models (
    model_id              text NOT NULL,
    version               integer NOT NULL CHECK (version > 0),
    state                 text NOT NULL CHECK (state IN ('candidate', 'promoted', 'retired')),
    parent_version        integer,
    round_id              text,
    digest                bytea NOT NULL CHECK (octet_length(digest) = 32), -- of the safetensors
    size_bytes            bigint NOT NULL CHECK (size_bytes > 0),           -- of the safetensors
    blob_digest           bytea NOT NULL CHECK (octet_length(blob_digest) = 32),
    wrapped_key           bytea NOT NULL,
    kek_id                text NOT NULL,
    manifest              bytea NOT NULL, -- serialized SignedStatement
    optimizer_digest      bytea,
    optimizer_blob_digest bytea,
    optimizer_wrapped_key bytea,
    metrics               jsonb NOT NULL DEFAULT '{}',
    created_at_ms         bigint NOT NULL,
    promoted_at_ms        bigint,
    promoted_by           text,
    PRIMARY KEY (model_id, version),
    FOREIGN KEY (model_id, parent_version) REFERENCES federated_models (model_id, version),
    CHECK (parent_version < version),
    CHECK ((optimizer_digest IS NULL) = (optimizer_blob_digest IS NULL)),
    CHECK ((optimizer_digest IS NULL) = (optimizer_wrapped_key IS NULL)),
    CHECK (state <> 'promoted' OR (promoted_at_ms IS NOT NULL AND promoted_by IS NOT NULL))
);
-- At most one version of a model is live, and a round makes at most one version.
CREATE UNIQUE INDEX federated_models_promoted ON federated_models (model_id)
    WHERE state = 'promoted';
CREATE UNIQUE INDEX federated_models_round ON federated_models (round_id)
    WHERE round_id IS NOT NULL;

-- Rounds. Phase names are those of boltz_mesh.rounds; outcome is null while the round is open.
CREATE TABLE federated_aggregations (
    round_id              text PRIMARY KEY CHECK (round_id ~ '^[0-9a-f]{32}$'),
    model_id              text NOT NULL,
    attempt               integer NOT NULL CHECK (attempt > 0),
    phase                 text NOT NULL,
    base_version          integer NOT NULL,
    plan_revision         integer NOT NULL,
    config_statement      bytea,          -- serialized SignedStatement of this attempt
    config_digest         bytea,
    next_seq              bigint NOT NULL DEFAULT 0,
    aggregate_blob_digest bytea,
    aggregate_wrapped_key bytea,
    outcome               text CHECK (outcome IN ('published', 'rejected', 'aborted')),
    reason                text,
    trace_context         text NOT NULL DEFAULT '', -- W3C traceparent
    started_by            text NOT NULL,
    started_at_ms         bigint NOT NULL,
    deadline_at_ms        bigint,
    ended_at_ms           bigint,
    new_version           integer,
    FOREIGN KEY (model_id, base_version) REFERENCES federated_models (model_id, version),
    FOREIGN KEY (model_id, plan_revision) REFERENCES plans (model_id, revision),
    CHECK ((outcome IS NULL) = (ended_at_ms IS NULL)),
    CHECK ((config_statement IS NULL) = (config_digest IS NULL)),
    CHECK ((aggregate_blob_digest IS NULL) = (aggregate_wrapped_key IS NULL))
);
CREATE UNIQUE INDEX federated_aggregations_open ON federated_aggregations (model_id)
    WHERE outcome IS NULL;
CREATE INDEX federated_aggregations_listing
    ON federated_aggregations (model_id, started_at_ms DESC, round_id DESC);

CREATE TABLE round_roster (
    round_id       text NOT NULL REFERENCES federated_aggregations,
    attempt        integer NOT NULL,
    position       integer NOT NULL CHECK (position >= 0),
    client_id      text NOT NULL REFERENCES federated_clients,
    session_id     text NOT NULL,
    weight         integer NOT NULL CHECK (weight BETWEEN 0 AND 255),
    sample_bucket  integer NOT NULL CHECK (sample_bucket BETWEEN 0 AND 31),
    quality_bucket integer NOT NULL CHECK (quality_bucket BETWEEN 0 AND 3),
    group_id       integer NOT NULL DEFAULT 0,
    entry          bytea NOT NULL,        -- serialized RosterEntry: the bytes that were hashed
    PRIMARY KEY (round_id, attempt, position),
    UNIQUE (round_id, attempt, client_id)
);

-- One row for each (round, attempt, client): a second digest is refused by the row itself.
CREATE TABLE federated_updates (
    round_id            text NOT NULL REFERENCES federated_aggregations,
    attempt             integer NOT NULL,
    client_id           text NOT NULL REFERENCES federated_clients,
    session_id          text NOT NULL,
    position            integer NOT NULL,
    update_digest       bytea NOT NULL CHECK (octet_length(update_digest) = 32),
    manifest            bytea NOT NULL,   -- serialized SignedStatement
    key_commitment      bytea NOT NULL,
    key_id              text NOT NULL,    -- server key that the content key is wrapped for
    wrapped_content_key bytea,            -- null once the round has ended
    size_bytes          bigint NOT NULL,
    chunk_count         integer NOT NULL,
    state               text NOT NULL
                        CHECK (state IN ('receiving', 'stored', 'counted', 'dropped')),
    blob_digest         bytea,            -- null while it arrives and once the round has ended
    receipt             bytea,            -- serialized SignedStatement; null while it arrives
    received_at_ms      bigint,
    PRIMARY KEY (round_id, attempt, client_id),
    CHECK (state = 'receiving' OR state = 'dropped' OR receipt IS NOT NULL),
    CHECK (blob_digest IS NULL OR wrapped_content_key IS NOT NULL)
);

-- Facts that handlers on any replica put down; the lease holder alone turns them into events.
CREATE TABLE round_inbox (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    round_id    text NOT NULL REFERENCES federated_aggregations,
    attempt     integer NOT NULL,
    kind        text NOT NULL,
    client_id   text,
    payload     jsonb NOT NULL,
    inserted_at_ms bigint NOT NULL,
    handled_seq bigint                    -- next_seq of the round when it was taken in
);
CREATE INDEX round_inbox_waiting ON round_inbox (round_id, id) WHERE handled_seq IS NULL;

CREATE TABLE round_events (
    round_id text NOT NULL REFERENCES federated_aggregations,
    seq      bigint NOT NULL CHECK (seq >= 0),
    at_ms    bigint NOT NULL,
    kind     text NOT NULL,
    payload  jsonb NOT NULL,
    fencing  bigint NOT NULL,
    PRIMARY KEY (round_id, seq)
);

-- The folded state before event `seq`; recovery goes on from it. Apart from the round's row, which
-- every handler reads, since it is long.
CREATE TABLE round_snapshots (
    round_id text PRIMARY KEY REFERENCES federated_aggregations,
    seq      bigint NOT NULL CHECK (seq >= 0),
    state    jsonb NOT NULL
);

-- What a running round may still spend, placed when it starts.
CREATE TABLE privacy_holds (
    round_id  text NOT NULL REFERENCES federated_aggregations,
    attempt   integer NOT NULL,
    client_id text NOT NULL REFERENCES federated_clients,
    model_id  text NOT NULL,
    event     jsonb NOT NULL,
    PRIMARY KEY (round_id, attempt, client_id)
);
CREATE INDEX privacy_holds_model ON privacy_holds (model_id, client_id);

-- What was spent. Never changed, never deleted: epsilon is computed from these rows.
CREATE TABLE privacy_events (
    id               bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    model_id         text NOT NULL,
    client_id        text NOT NULL,
    round_id         text NOT NULL,
    attempt          integer NOT NULL,
    mechanism        text NOT NULL,
    noise_multiplier double precision NOT NULL CHECK (noise_multiplier >= 0),
    sensitivity      double precision NOT NULL CHECK (sensitivity > 0),
    relation         text NOT NULL,
    unit             text NOT NULL,
    sampling_rate    double precision NOT NULL CHECK (sampling_rate > 0 AND sampling_rate <= 1),
    at_ms            bigint NOT NULL,
    UNIQUE (round_id, attempt, client_id)
);
CREATE INDEX privacy_events_model ON privacy_events (model_id, client_id, id);

CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '% is append-only', TG_TABLE_NAME USING ERRCODE = 'integrity_constraint_violation';
END $$;
CREATE TRIGGER privacy_events_append_only
    BEFORE UPDATE OR DELETE OR TRUNCATE ON privacy_events
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

-- Clients that hold a Participate stream open, on which replica. A row whose replica no longer holds
-- its advisory lock is stale.
CREATE TABLE check_ins (
    client_id      text NOT NULL REFERENCES federated_clients ON DELETE CASCADE,
    model_id       text NOT NULL,
    session_id     text NOT NULL,
    replica_id     text NOT NULL,
    replica_lock   integer NOT NULL,      -- objid of the replica's advisory lock
    sample_bucket  integer NOT NULL CHECK (sample_bucket BETWEEN 0 AND 31),
    quality_bucket integer NOT NULL CHECK (quality_bucket BETWEEN 0 AND 3),
    region         text NOT NULL,
    protocol_min   integer NOT NULL,
    protocol_max   integer NOT NULL,
    statement      bytea NOT NULL,        -- serialized SignedStatement
    at_ms          bigint NOT NULL,
    PRIMARY KEY (client_id, model_id),
    CHECK (protocol_min <= protocol_max)
);
CREATE INDEX check_ins_model ON check_ins (model_id);

-- Each acquisition of the coordinator's lease raises the token; an older holder's writes are refused.
CREATE TABLE coordinator_lease (
    singleton     boolean PRIMARY KEY DEFAULT true CHECK (singleton),
    fencing_token bigint NOT NULL,
    holder        text NOT NULL
);
INSERT INTO coordinator_lease (fencing_token, holder) VALUES (0, '');

CREATE TABLE security_events (
    id        bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    kind      text NOT NULL,
    client_id text,
    round_id  text,
    detail    jsonb NOT NULL,             -- never a secret
    at_ms     bigint NOT NULL
);

-- Refused messages, counted by where and why (ErrorInfo.reason).
CREATE TABLE refusal_counts (
    method     text NOT NULL,
    reason     text NOT NULL,
    count      bigint NOT NULL,
    last_at_ms bigint NOT NULL,
    PRIMARY KEY (method, reason)
);
