-- Sealed rounds: what clients and the mesh say to each other between the offer and the sum.

-- One message of each kind for each (round, attempt, client): the first one stands, and another one
-- of the same kind is refused by the row itself.
CREATE TABLE round_messages (
    round_id  text NOT NULL REFERENCES federated_aggregations,
    attempt   integer NOT NULL,
    kind      text NOT NULL CHECK (kind IN ('key-advertisement', 'nonce', 'dealt-shares',
                                            'survivors-seen', 'released-shares')),
    client_id text NOT NULL REFERENCES federated_clients,
    position  integer NOT NULL CHECK (position >= 0), -- in the roster
    digest    bytea NOT NULL CHECK (octet_length(digest) = 32), -- of the message as it came
    payload   bytea,             -- released shares: encrypted; null once the round has ended
    covered   integer[],         -- released shares: positions of the dealers, each share checked
    at_ms     bigint NOT NULL,
    PRIMARY KEY (round_id, attempt, kind, client_id)
);
CREATE INDEX round_messages_kind ON round_messages (round_id, attempt, kind, position);

-- What the mesh signs for an attempt beside its configuration, in the transaction that moves it on.
CREATE TABLE round_statements (
    round_id  text NOT NULL REFERENCES federated_aggregations,
    attempt   integer NOT NULL,
    kind      text NOT NULL CHECK (kind IN ('key-roster', 'survivors')),
    statement bytea NOT NULL,    -- serialized SignedStatement
    PRIMARY KEY (round_id, attempt, kind)
);

-- What a session that comes back may have missed.
CREATE INDEX round_roster_session ON round_roster (client_id, session_id);
