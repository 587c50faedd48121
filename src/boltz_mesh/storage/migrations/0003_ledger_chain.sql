-- The privacy ledger as a chain of hashes for each model (boltz_mesh.privacy.chain says what is
-- hashed), and the period of data that an event is about.

CREATE TABLE privacy_chains (
    model_id text PRIMARY KEY,
    length   bigint NOT NULL CHECK (length >= 0),
    head     bytea NOT NULL CHECK (octet_length(head) = 32) -- hash of the last event; zeros of none
);

-- A chain only grows.
CREATE FUNCTION refuse_shrinking() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.model_id <> OLD.model_id OR NEW.length <= OLD.length THEN
        RAISE EXCEPTION '% is append-only', TG_TABLE_NAME
            USING ERRCODE = 'integrity_constraint_violation';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER privacy_chains_grow
    BEFORE UPDATE ON privacy_chains FOR EACH ROW EXECUTE FUNCTION refuse_shrinking();
CREATE TRIGGER privacy_chains_stay
    BEFORE DELETE OR TRUNCATE ON privacy_chains
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

ALTER TABLE privacy_events
    ADD COLUMN period text NOT NULL DEFAULT '', -- '2026-10-01/2027-01-01'; '' for a whole client
    ADD COLUMN seq bigint,                      -- place in the model's chain, from 1
    ADD COLUMN previous_hash bytea,
    ADD COLUMN hash bytea;

-- What was charged before there was a chain becomes its beginning.
DROP TRIGGER privacy_events_append_only ON privacy_events;
CREATE FUNCTION pg_temp.hashed(content text) RETURNS bytea LANGUAGE sql AS $$
    SELECT int4send(octet_length(convert_to(content, 'UTF8'))) || convert_to(content, 'UTF8')
$$;
DO $$
DECLARE
    event  privacy_events;
    place  bigint;
    before bytea;
    own    bytea;
BEGIN
    FOR event IN SELECT * FROM privacy_events ORDER BY id LOOP
        INSERT INTO privacy_chains (model_id, length, head)
            VALUES (event.model_id, 0, decode(repeat('00', 32), 'hex')) ON CONFLICT DO NOTHING;
        SELECT length + 1, head INTO place, before
            FROM privacy_chains WHERE model_id = event.model_id;
        own := sha256(
            convert_to(E'boltz-mesh privacy event 1\n', 'UTF8') || before || int8send(place)
            || pg_temp.hashed(event.model_id) || pg_temp.hashed(event.client_id)
            || pg_temp.hashed(event.round_id) || int8send(event.attempt::bigint)
            || pg_temp.hashed(event.mechanism) || float8send(event.noise_multiplier)
            || float8send(event.sensitivity) || pg_temp.hashed(event.relation)
            || pg_temp.hashed(event.unit) || pg_temp.hashed(event.period)
            || float8send(event.sampling_rate) || int8send(event.at_ms));
        UPDATE privacy_events SET seq = place, previous_hash = before, hash = own
            WHERE id = event.id;
        UPDATE privacy_chains SET length = place, head = own WHERE model_id = event.model_id;
    END LOOP;
END $$;
CREATE TRIGGER privacy_events_append_only
    BEFORE UPDATE OR DELETE OR TRUNCATE ON privacy_events
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

ALTER TABLE privacy_events
    ALTER COLUMN seq SET NOT NULL,
    ALTER COLUMN previous_hash SET NOT NULL,
    ALTER COLUMN hash SET NOT NULL,
    ADD CONSTRAINT privacy_events_place UNIQUE (model_id, seq),
    ADD CONSTRAINT privacy_events_hashes
        CHECK (seq > 0 AND octet_length(previous_hash) = 32 AND octet_length(hash) = 32),
    -- PostgreSQL takes NaN for larger than every number.
    ADD CONSTRAINT privacy_events_finite
        CHECK (noise_multiplier < 'Infinity' AND sensitivity < 'Infinity'),
    ADD CONSTRAINT privacy_events_noise CHECK ((mechanism = 'none') = (noise_multiplier = 0));

-- What one client has spent over all models.
CREATE INDEX privacy_events_client ON privacy_events (client_id);
CREATE INDEX privacy_holds_client ON privacy_holds (client_id);
