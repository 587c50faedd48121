-- Trust: why a client weighs what it weighs for a model, and whether it is in quarantine
-- (boltz_mesh.trust.reputation says what the numbers mean).

-- Each change is a row with its inputs and the state after it. Never changed, never deleted: trust
-- is recomputed from these rows.
CREATE TABLE trust_evidence (
    id                bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    model_id          text NOT NULL,
    client_id         text NOT NULL,
    seq               bigint NOT NULL CHECK (seq > 0),      -- of this client for this model, from 1
    ordinal           bigint NOT NULL CHECK (ordinal >= 0), -- of the round among those of the model
                                                            -- that fixed a roster and ended, from 1
    round_id          text,                                 -- null for what no round brought about
    attempt           integer,
    kind              text NOT NULL
                      CHECK (kind IN ('conduct', 'outcome', 'quarantine', 'release')),
    reason            text NOT NULL,
    gain_256          integer NOT NULL CHECK (gain_256 BETWEEN 0 AND 12288), -- in 1/256ths
    loss_256          integer NOT NULL CHECK (loss_256 BETWEEN 0 AND 12288),
    inputs            jsonb NOT NULL CHECK (jsonb_typeof(inputs) = 'object'), -- what gain and loss
                                                                              -- come from
    positive_256      integer NOT NULL CHECK (positive_256 BETWEEN 0 AND 4096), -- state after it
    negative_256      integer NOT NULL CHECK (negative_256 BETWEEN 0 AND 12288),
    quarantine_rounds integer NOT NULL CHECK (quarantine_rounds BETWEEN 0 AND 128),
    trust_256         integer NOT NULL CHECK (trust_256 BETWEEN 1 AND 256),
    at_ms             bigint NOT NULL,
    UNIQUE (model_id, client_id, seq),
    UNIQUE (round_id, attempt, client_id, kind),
    CHECK ((round_id IS NULL) = (attempt IS NULL))
);
-- A client's trust for all its models.
CREATE INDEX trust_evidence_client ON trust_evidence (client_id, model_id, seq);

CREATE TRIGGER trust_evidence_append_only
    BEFORE UPDATE OR DELETE OR TRUNCATE ON trust_evidence
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

-- What of a weight is the client's trust, in 1/256ths; 0 where nobody wrote it down.
ALTER TABLE round_roster
    ADD COLUMN trust_256 integer NOT NULL DEFAULT 0 CHECK (trust_256 BETWEEN 0 AND 256);

-- What was noted about a round's clients, when the round ends.
CREATE INDEX security_events_round ON security_events (round_id) WHERE round_id IS NOT NULL;
