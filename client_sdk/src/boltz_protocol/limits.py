"""Every cap of the contract in one place, with its reason; relations are asserted at import."""

from __future__ import annotations

from typing import Final

# --- vectors -----------------------------------------------------------------------------------

#: Parameters in one chunk of an encoded update. 2^18 x 3 bytes stays in a core's L2 cache while it
#: is packed, encrypted and hashed, and makes one gRPC message of 768 KiB.
CHUNK_PARAMETERS: Final = 1 << 18
#: Bits a coordinate takes on the wire; sums live in Z_2^32 in memory.
WIRE_BITS: Final = 24
WIRE_BYTES: Final = WIRE_BITS // 8
#: Coordinates (parameters and lanes) of one model: 4 GB of float32, 3 GB on the wire.
MAX_COORDINATES: Final = 1 << 30
MAX_TENSORS: Final = 4096
MAX_TENSOR_RANK: Final = 8
MAX_LANES: Final = 16

# --- messages ----------------------------------------------------------------------------------

#: Plain bytes of one update chunk, and the GCM tag behind it.
CHUNK_PLAIN_BYTES: Final = CHUNK_PARAMETERS * WIRE_BYTES
GCM_TAG_BYTES: Final = 16
CHUNK_CIPHER_BYTES: Final = CHUNK_PLAIN_BYTES + GCM_TAG_BYTES
#: Model bytes in one chunk of Pull and Publish, and plain bytes of one chunk of a blob at rest.
MODEL_CHUNK_BYTES: Final = 1 << 20
#: gRPC's own default is 4 MiB; a chunk and its framing fit well below.
MAX_MESSAGE_BYTES: Final = 4 << 20
#: A signed statement's payload; the largest is a manifest with MAX_TENSORS tensor names.
MAX_STATEMENT_BYTES: Final = 1 << 20
MAX_CERTIFICATE_CHAIN_BYTES: Final = 32 << 10
MAX_NAME_CHARS: Final = 200
#: The server acknowledges durable bytes about this often, so that a lost connection costs little.
ACK_EVERY_CHUNKS: Final = 8
#: A Pull sends at most this many chunks ahead of the credits it was given.
MAX_PULL_CREDITS: Final = 64

# --- keys, certificates, envelopes -------------------------------------------------------------

#: RSA keys: 3072 bits is 128-bit security (NIST SP 800-57 part 1, table 2); more than 4096 only
#: lets a sender choose how long a verification takes.
MIN_RSA_BITS: Final = 3072
MAX_RSA_BITS: Final = 4096
MAX_SIGNATURE_BYTES: Final = MAX_RSA_BITS // 8
#: Leaf, issuer, and room for one more: an outside authority may put an intermediate in between.
MAX_CHAIN_CERTIFICATES: Final = 3
#: A secret wrapped under a key-encryption key; the largest are the shares that one client released
#: for MAX_NEIGHBOURS others, 80 bytes each.
MAX_WRAPPED_SECRET_BYTES: Final = 64 << 10
#: Chunks under one content key: 64 GiB of model and optimizer state, far below GCM's bounds.
MAX_ENVELOPE_CHUNKS: Final = 1 << 16
#: Two addresses, a name, 64 bytes of secrets and digests, in base64: what a person can paste.
MAX_JOIN_STRING_CHARS: Final = 1200
#: `[` + IPv6 or a DNS name of 253 + `]:65535`.
MAX_ADDRESS_CHARS: Final = 261

#: An operator's validation set, which the server keeps in memory: a million rows of 64 parameters.
MAX_VALIDATION_BYTES: Final = 256 << 20
#: A model file: MAX_COORDINATES of float32 and room for a header and for the optimizer's state.
MAX_MODEL_FILE_BYTES: Final = 5 << 30
#: A safetensors header: MAX_TENSORS names of MAX_NAME_CHARS, escaped, with shapes and offsets.
MAX_MODEL_HEADER_BYTES: Final = 4 << 20
#: The ciphertext of an update: MAX_COORDINATES, and a tag for each chunk.
MAX_UPDATE_BYTES: Final = MAX_COORDINATES // CHUNK_PARAMETERS * CHUNK_CIPHER_BYTES
#: W3C trace context, section 3.3.1.3: propagate at least 512 characters.
MAX_TRACESTATE_CHARS: Final = 512
#: Suites that one check-in may name.
MAX_SUITES: Final = 16
#: What a plan hands to the trainers: settings, not data.
MAX_HYPERPARAMETERS: Final = 64
MAX_HYPERPARAMETER_CHARS: Final = 1024
#: An error's message and each of its details travel in HTTP/2 trailers, which gRPC caps at 8 KiB.
MAX_ERROR_CHARS: Final = 1000
MAX_ERROR_DETAILS: Final = 8

# --- rounds ------------------------------------------------------------------------------------

#: Clients of one round. The bitmap of survivors and the roster stay below a message's size.
MAX_ROSTER: Final = 10_000
MAX_ATTEMPTS: Final = 3
#: Rows (clients or groups) of one robust rule: a chunk of each is in memory at once, 256 MiB at most
#: in each thread that folds, and every one is compared with every other.
MAX_ROBUST_ROWS: Final = 256
MAX_WEIGHT: Final = 255
#: Sample counts are sent as the bucket floor(log2(count)): 0 to 31.
MAX_SAMPLE_BUCKET: Final = 31
#: Declared data quality: 0 (worst) to 3 (best).
MAX_QUALITY_BUCKET: Final = 3
#: A deadline may not be longer than the decryption keys live.
MAX_PHASE_MS: Final = 12 * 3600 * 1000
#: After its collecting a sealed round wants at most this much longer of its clients, for checking
#: and unmasking: one that never hears of the round's end forgets its secrets then.
MAX_UNMASKING_MS: Final = 2 * MAX_PHASE_MS
SERVER_KEY_LIFETIME_MS: Final = 24 * 3600 * 1000
#: A signed statement of a client is refused when its time is further off than this.
MAX_CLOCK_SKEW_MS: Final = 5 * 60 * 1000
#: Content keys of arriving updates that a server keeps unwrapped: rounds of a few thousand clients.
MAX_UNWRAPPED_KEYS: Final = 4096
#: Conditional stochastic rounding: the chance to need another draw is at most exp(-1/2) (Kairouz et
#: al. 2021, section 4), so 64 draws fail with probability exp(-32), about 1e-14.
MAX_ROUNDING_DRAWS: Final = 64


# --- sealed rounds -----------------------------------------------------------------------------

#: Up to here every client shares masks with every other (Bonawitz et al. 2017), 49 streams at most;
#: beyond, neighbours grow with the logarithm only (Bell et al. 2020), whose bounds say little
#: before.
MAX_COMPLETE_GRAPH: Final = 50
#: Fewest survivors of a sealed round. Of two, each learns the other's update by taking its own off.
MIN_SEALED_COHORT: Final = 3
#: Members of the smallest group of a grouped round. Of fewer than five hardly one may leave before
#: too few are left to hide among, and a group is drawn: nobody picks whom it is with.
MIN_GROUP: Final = 5
MAX_GROUPS: Final = MAX_ROSTER // MIN_GROUP
#: Neighbours of one client in the graph of secure aggregation, and so holders of its shares. What a
#: client is told of one neighbour (a certificate chain, two statements signed with RSA) is about
#: 5 kB, and all of them must fit one message. Far above what the dimensioning asks for at fractions
#: that a mesh can live with: (0.1, 0.1) gives 96 neighbours at 1000 clients.
MAX_NEIGHBOURS: Final = 512
#: X25519 keys, nonces, seeds, salts and SHA-256 digests.
SECRET_BYTES: Final = 32
#: A Shamir share: an element of the field of 2^256 + 297, which takes 257 bits.
SHARE_BYTES: Final = 33
#: Two shares and their salts, and the GCM tag behind them.
SEALED_SHARES_BYTES: Final = 2 * (SHARE_BYTES + SECRET_BYTES) + GCM_TAG_BYTES
#: A bitmap over the largest roster.
MAX_BITMAP_BYTES: Final = MAX_ROSTER // 8

# --- noise and clipping ------------------------------------------------------------------------

#: Clip norms outside this range mean a delta in a broken unit; inside, float32 products of delta
#: and scale neither overflow nor lose bits to subnormal numbers.
MIN_CLIP_NORM: Final = 2.0**-30
MAX_CLIP_NORM: Final = 2.0**30
#: Far above any useful noise: one release is then worth an epsilon of about 0.005.
MAX_NOISE_MULTIPLIER: Final = 1000.0
#: Standard deviations the noise sampler takes, in ring units. Below the least, discreteness shows;
#: above the most, 8 standard deviations would not fit the 24-bit ring.
MIN_SIGMA: Final = 0.5
MAX_SIGMA: Final = 1 << 20
#: Statistical distance of one sample to the exact discrete Gaussian, for every sigma above: at most
#: 54,000 thresholds of 128 bits, and a tail of 2^-125 (`noise.DiscreteGaussian.distance`).
MAX_SAMPLE_DISTANCE: Final = 2.0**-112
#: Least delta in which an epsilon is told: the samplers of ten thousand releases take less than it.
MIN_DELTA: Final = 1e-15

#: Below this, a sum of discrete Gaussian shares can be told from one discrete Gaussian; from here
#: on the difference adds less than 1e-10 to an epsilon at a million coordinates (`noise_share`).
MIN_NOISE_SHARE_SIGMA: Final = 2.0

# --- connections -------------------------------------------------------------------------------

#: Bytes of a stream that may be under way to the server unread: 5 MB/s at a round trip of 50 ms.
STREAM_WINDOW_BYTES: Final = 256 << 10
#: Events a server keeps for one control stream that does not read; then the stream is ended.
MAX_STREAM_QUEUE: Final = 64
MAX_RECONNECT_WAIT_MS: Final = 30_000
#: First wait of a backoff; it doubles, with jitter, up to MAX_RECONNECT_WAIT_MS.
MIN_RECONNECT_WAIT_MS: Final = 200
#: A connection on which nothing comes back is given up after KEEPALIVE_MS + KEEPALIVE_TIMEOUT_MS,
#: so a cut that sends no packet costs less than a round's deadline. Servers must allow this often.
KEEPALIVE_MS: Final = 30_000
KEEPALIVE_TIMEOUT_MS: Final = 10_000
#: A single call that should be answered at once.
CALL_TIMEOUT_MS: Final = 20_000
#: Tries of one pull that break off one after the other without a byte between.
MAX_TRANSFER_TRIES: Final = 20
#: Tries to reach the mesh for an enrolment: a person waits at the other end, and can try again.
MAX_ENROL_TRIES: Final = 4
#: How long a client that stops waits for the mesh to read its last words.
LEAVE_GRACE_MS: Final = 2_000
#: How long a client waits for the receipt of an update that it has heard was counted.
RECEIPT_GRACE_MS: Final = 2_000
#: Rounds that a client remembers as finished, so that a repeated offer starts nothing anew.
MAX_REMEMBERED_ROUNDS: Final = 64
#: Models that fit into one chunk are kept in memory; larger ones are spooled, so that a pull can go
#: on after a cut.
MAX_UNSPOOLED_MODEL_BYTES: Final = MODEL_CHUNK_BYTES
#: Verified statements (encryption keys) that a client keeps, so as not to verify them each round.
MAX_CACHED_STATEMENTS: Final = 16
#: Certificates of peers that a client keeps as verified: those of two rounds with most neighbours.
MAX_CACHED_PEERS: Final = 2 * MAX_NEIGHBOURS
#: A client's own privacy ledger: half a million rounds at 250 bytes each.
MAX_LEDGER_BYTES: Final = 128 << 20
MAX_LIST_PAGE: Final = 1000

assert 8 * MAX_SIGMA <= 1 << (WIRE_BITS - 1)
# --- database (server) -------------------------------------------------------------------------

#: Connections of one server process; ten such replicas fit a PostgreSQL's default of 100.
MAX_DATABASE_CONNECTIONS: Final = 8
#: Runs of one transaction under contention, before its caller is told to come back.
MAX_TX_ATTEMPTS: Final = 8
DATABASE_CONNECT_MS: Final = 10_000
#: One statement. All of ours take milliseconds; this only ends a wait for a dead server.
DATABASE_STATEMENT_MS: Final = 30_000
#: A transaction that forgot to end would hold its locks for ever.
MAX_TX_IDLE_MS: Final = 60_000
DATABASE_CLOSE_MS: Final = 5_000
#: When to try again what found the database unreachable or contended.
DATABASE_RETRY_MS: Final = 500
#: A dedicated connection (listener, lease) is asked this often whether it lives: a peer that
#: vanished without a word is noticed within this and DATABASE_PROBE_MS.
DATABASE_HEARTBEAT_MS: Final = 10_000
DATABASE_PROBE_MS: Final = 5_000
#: Wait between two attempts to reconnect a dedicated connection; it grows from a hundredth of it.
MAX_DATABASE_RECONNECT_MS: Final = 5_000
#: A replica that waits for the coordinator's lease asks anew this often, on a new connection: the
#: one it waits on may have died without a word, and a busy connection cannot be probed.
LEASE_WAIT_MS: Final = 60_000
#: Payloads kept for a subscriber that is busy; beyond it is told to read everything again.
MAX_PENDING_WAKEUPS: Final = 256
#: Answers of clients that are checked and kept in one transaction: the event loop is busy with
#: their checks for a few milliseconds, and the round is held meanwhile.
MAX_ANSWERS_TOGETHER: Final = 32
#: Rows of one inbox batch, which become events in one transaction.
MAX_INBOX_BATCH: Final = 1000
#: The coordinator looks this often for what crashes left behind.
HOUSEKEEPING_MS: Final = 3600 * 1000
#: A blob that no row refers to goes when it is older than any phase that could still refer to it.
MAX_ORPHAN_AGE_MS: Final = SERVER_KEY_LIFETIME_MS
#: Handled facts of ended rounds are kept this long for whoever looks into one.
MAX_HANDLED_FACT_AGE_MS: Final = 7 * 24 * 3600 * 1000
#: A blob's resumable upload is named by its caller.
MAX_BLOB_KEY_CHARS: Final = 200

assert CHUNK_CIPHER_BYTES < MAX_MESSAGE_BYTES // 2
assert MODEL_CHUNK_BYTES < MAX_MESSAGE_BYTES // 2
assert MAX_STATEMENT_BYTES < MAX_MESSAGE_BYTES // 2
assert 2 * MAX_PHASE_MS <= SERVER_KEY_LIFETIME_MS
assert MAX_ROSTER * MAX_WEIGHT < 1 << 32
assert MAX_ROSTER % 8 == 0
assert MAX_COMPLETE_GRAPH <= MAX_NEIGHBOURS
# Groups that differ in size by one fit between the two for any number of members that two take.
assert MIN_SEALED_COHORT <= MIN_GROUP < MAX_COMPLETE_GRAPH // 2
# A KeyRoster (a digest and a commitment a member) is one statement, and with leaf hashes and
# weights one message; so is all that a client is told of its neighbours, at 7 kB each.
assert 2 * SECRET_BYTES * MAX_ROSTER + 2 * MAX_BITMAP_BYTES < MAX_STATEMENT_BYTES
assert (3 * SECRET_BYTES + 1) * MAX_ROSTER + 2 * MAX_BITMAP_BYTES < MAX_MESSAGE_BYTES
assert MAX_NEIGHBOURS * (7 << 10) + SECRET_BYTES * MAX_ROSTER < MAX_MESSAGE_BYTES
assert MIN_RECONNECT_WAIT_MS < MAX_RECONNECT_WAIT_MS
# A model of the largest size with two optimizer moments, all float32, fits one envelope.
assert 3 * 4 * MAX_COORDINATES <= MAX_ENVELOPE_CHUNKS * MODEL_CHUNK_BYTES
assert WIRE_BYTES * MAX_COORDINATES <= MAX_ENVELOPE_CHUNKS * CHUNK_PLAIN_BYTES
