"""One root for every error the mesh raises on purpose, on either end of a connection.

An error has a stable `reason` (carried as `google.rpc.ErrorInfo.reason`), a gRPC status, a
sentence for a person, and one piece of advice: what to do next. Broken invariants are not here:
they assert.
"""

from __future__ import annotations

from typing import ClassVar, Final

#: `ErrorInfo.domain` of every error of ours.
ERROR_DOMAIN: Final = "boltz-mesh"


class MeshError(Exception):
    """The root. `metadata` travels with the error and must never hold a secret.

    Args:
        message: one sentence that says what is wrong, naming the offending value where it is
            not secret.
        retry_after_ms: where the same call may succeed later, after how many milliseconds.
        metadata: machine-readable details, ASCII keys in `[a-zA-Z0-9-_]`.
    """

    reason: ClassVar[str] = "INTERNAL"
    status: ClassVar[str] = "INTERNAL"
    next_step: ClassVar[str] = "Report this with the server's log lines of the same trace id."

    def __init__(
        self, message: str, *, retry_after_ms: int | None = None, **metadata: str | int
    ) -> None:
        super().__init__(message)
        self.message = message
        self.retry_after_ms = retry_after_ms
        self.metadata = {key: str(value) for key, value in metadata.items()}

    def advice(self) -> str:
        """What a person should do next."""
        return self.next_step


# --- what a sender got wrong -------------------------------------------------------------------


class MalformedMessage(MeshError):
    """A field is missing, out of range, or does not parse; or bytes are left over."""

    reason = "MALFORMED_MESSAGE"
    status = "INVALID_ARGUMENT"
    next_step = "Compare the message with the field comments in proto/boltz_mesh/v1."


class LimitExceeded(MeshError):
    """A size or a count is over its cap (see `limits`)."""

    reason = "LIMIT_EXCEEDED"
    status = "RESOURCE_EXHAUSTED"
    next_step = "Send less at once; the message names the cap."


class ChunkOutOfOrder(MeshError):
    """A chunk's offset or index is not the next one expected."""

    reason = "CHUNK_OUT_OF_ORDER"
    status = "INVALID_ARGUMENT"
    next_step = "Resume from the committed offset that the server names in `committed_bytes`."


class DigestMismatch(MeshError):
    """Bytes do not have the SHA-256 digest that was promised for them."""

    reason = "DIGEST_MISMATCH"
    status = "INVALID_ARGUMENT"
    next_step = "Read the source bytes again; a changed spool file must not be sent."


class SecondDigest(MeshError):
    """A second, different update for the same round and attempt."""

    reason = "SECOND_DIGEST"
    status = "FAILED_PRECONDITION"
    next_step = "Send the bytes first announced for this round, or sit this round out."


class SecondMessage(MeshError):
    """A second, different message of one kind for the same round and attempt."""

    reason = "SECOND_MESSAGE"
    status = "FAILED_PRECONDITION"
    next_step = "Send the bytes first sent, or sit this round out; never run one client twice."


class ShareRefused(MeshError):
    """A released share that does not match its dealer's commitment, or that was not asked for."""

    reason = "SHARE_REFUSED"
    status = "INVALID_ARGUMENT"
    next_step = "Release exactly the share that the dealer sealed, of the kind the survivors ask."


class DealerBlamed(MeshError):
    """Shares that match their dealer's signed commitments, and do not give the dealer's secret.

    Attributes:
        dealers: roster positions of those who dealt wrongly.
    """

    reason = "DEALER_BLAMED"
    status = "FAILED_PRECONDITION"
    next_step = "The attempt is lost; leave the named client out of the next one and look into it."

    def __init__(
        self,
        message: str,
        *,
        dealers: tuple[int, ...] = (),
        retry_after_ms: int | None = None,
        **metadata: str | int,
    ) -> None:
        super().__init__(message, retry_after_ms=retry_after_ms, **metadata)
        self.dealers = dealers


class ReplayRefused(MeshError):
    """A signed statement that was already used, or is too old or too new."""

    reason = "REPLAY_REFUSED"
    status = "FAILED_PRECONDITION"
    next_step = "Sign a new statement with the current time; check this machine's clock."


class SignatureInvalid(MeshError):
    """A signature does not verify, or its algorithm is not allowed for this statement."""

    reason = "SIGNATURE_INVALID"
    status = "INVALID_ARGUMENT"
    next_step = "Sign with the registered key and the algorithm named in the contract."


class DecryptionFailed(MeshError):
    """An encrypted chunk or wrapped key does not open under its context."""

    reason = "DECRYPTION_FAILED"
    status = "INVALID_ARGUMENT"
    next_step = "Encrypt for the key and the context that this round's configuration names."


class UnknownKey(MeshError):
    """A key id that is not known, not yet valid, or past its end."""

    reason = "UNKNOWN_KEY"
    status = "FAILED_PRECONDITION"
    next_step = "Call GetServerKeys and use a key that is valid now."


class NotFinite(MeshError):
    """A NaN or an infinity where a finite number is required."""

    reason = "NOT_FINITE"
    status = "INVALID_ARGUMENT"
    next_step = "Look for an exploding loss or missing data in the training step."


class ShapeMismatch(MeshError):
    """A tensor or a vector does not have the shape or dtype that the model declares."""

    reason = "SHAPE_MISMATCH"
    status = "INVALID_ARGUMENT"
    next_step = "Return one array for each tensor of the model, with the model's shapes and dtypes."


class NormExceeded(MeshError):
    """An encoded update is longer (L2) than the clip norm allows."""

    reason = "NORM_EXCEEDED"
    status = "INVALID_ARGUMENT"
    next_step = "Clip to the round's clip norm before encoding."


class WeightRefused(MeshError):
    """A weight that is not the committed one, or that takes more of the total than allowed."""

    reason = "WEIGHT_REFUSED"
    status = "FAILED_PRECONDITION"
    next_step = "Use the weight committed in the round's configuration."


class InvalidPlan(MeshError):
    """A `plan.toml` that cannot work; the message names the setting and a value that would do."""

    reason = "INVALID_PLAN"
    status = "INVALID_ARGUMENT"
    next_step = "Change the named setting and apply the plan again."


class TooFewClients(MeshError):
    """A robust rule has fewer rows (clients or groups) than the liars it tolerates ask for.

    `metadata`: "setting", "rule" and "minimum", the rows that the rule takes at least.
    """

    reason = "TOO_FEW_CLIENTS"
    status = "FAILED_PRECONDITION"
    next_step = "Let more clients or groups take part, or tolerate fewer liars in the plan."


# --- who may do what ---------------------------------------------------------------------------


class Unauthenticated(MeshError):
    """No certificate, or one whose name this mesh does not know."""

    reason = "UNAUTHENTICATED"
    status = "UNAUTHENTICATED"
    next_step = "Connect with the certificate from enrolment."


class CertificateInvalid(MeshError):
    """A certificate that this mesh's authority did not issue, or not for this use or time."""

    reason = "CERTIFICATE_INVALID"
    status = "UNAUTHENTICATED"
    next_step = "Use a certificate of this mesh's authority; check this machine's clock."


class PermissionDenied(MeshError):
    """The caller's role may not call this method, or the thing belongs to someone else."""

    reason = "PERMISSION_DENIED"
    status = "PERMISSION_DENIED"
    next_step = "Use a credential whose role may do this; see the table in docs/operator.md."


class ClientNotActive(MeshError):
    """The client is pending, suspended or revoked."""

    reason = "CLIENT_NOT_ACTIVE"
    status = "PERMISSION_DENIED"
    next_step = "Ask the mesh's operator about this client's status."


class TokenRefused(MeshError):
    """An enrolment token that is unknown, used, or past its end."""

    reason = "TOKEN_REFUSED"
    status = "PERMISSION_DENIED"
    next_step = "Ask the operator for a new join string: `boltz-mesh clients token`."


class ApprovalPending(MeshError):
    """Enrolment waits for an operator."""

    reason = "APPROVAL_PENDING"
    status = "FAILED_PRECONDITION"
    next_step = "Wait for `boltz-mesh clients approve`, then enrol again with the same join string."


# --- the state of things -----------------------------------------------------------------------


class NotFound(MeshError):
    """Nothing under this name."""

    reason = "NOT_FOUND"
    status = "NOT_FOUND"
    next_step = "List what exists and check the spelling."


class AlreadyExists(MeshError):
    """The name is taken."""

    reason = "ALREADY_EXISTS"
    status = "ALREADY_EXISTS"
    next_step = "Choose another name, or use the existing one."


class NotInRoster(MeshError):
    """A client that this round did not select, or another client's session."""

    reason = "NOT_IN_ROSTER"
    status = "PERMISSION_DENIED"
    next_step = "Wait for an offer on the Participate stream."


class RoundClosed(MeshError):
    """The round (or this attempt) does not take updates, any more or yet."""

    reason = "ROUND_CLOSED"
    status = "FAILED_PRECONDITION"
    next_step = "Wait for the next offer on the Participate stream."


class BudgetExceeded(MeshError):
    """A round that could spend more privacy than the plan allows."""

    reason = "BUDGET_EXCEEDED"
    status = "FAILED_PRECONDITION"
    next_step = "Raise the noise multiplier, run fewer rounds, or raise the budget in the plan."


class LedgerBroken(MeshError):
    """The mesh's privacy ledger was altered: a row does not fit the chain of hashes."""

    reason = "LEDGER_BROKEN"
    status = "DATA_LOSS"
    next_step = (
        "Find out who wrote to the database and restore the ledger's tables from a backup; no "
        "round of the model starts before."
    )


class StateConflict(MeshError):
    """The thing is not in a state that allows this, or somebody else changed it first."""

    reason = "STATE_CONFLICT"
    status = "FAILED_PRECONDITION"
    next_step = "Look at the current state and decide again."


class Superseded(MeshError):
    """A newer session of the same client took this one's place."""

    reason = "SUPERSEDED"
    status = "ABORTED"
    next_step = "Run one process for each client; the newest one wins."


class Unavailable(MeshError):
    """Not now: starting, stopping, overloaded, or a part cannot be reached."""

    reason = "UNAVAILABLE"
    status = "UNAVAILABLE"
    next_step = "Try again in a moment."


# --- this machine ------------------------------------------------------------------------------


class ConfigurationError(MeshError):
    """A setting, file or argument on this machine is wrong; the message names it."""

    reason = "CONFIGURATION"
    status = "INVALID_ARGUMENT"
    next_step = "Correct the named setting."


class RoundRefused(MeshError):
    """The client's own limits forbid taking part in this round."""

    reason = "ROUND_REFUSED"
    status = "FAILED_PRECONDITION"
    next_step = "Nothing was sent. Change the owner's limits only if the round is acceptable."


class TrainingFailed(MeshError):
    """The owner's trainer raised an error, or returned what the round cannot use."""

    reason = "TRAINING_FAILED"
    status = "INTERNAL"
    next_step = "Correct the trainer; the mesh was told that this client sits the round out."


class KeyStoreLocked(MeshError):
    """Another process holds this key store."""

    reason = "KEY_STORE_LOCKED"
    status = "FAILED_PRECONDITION"
    next_step = "Stop the other process, or give this one a key store of its own."


def _subclasses(root: type[MeshError]) -> list[type[MeshError]]:
    return [root, *(leaf for sub in root.__subclasses__() for leaf in _subclasses(sub))]


def error_from_wire(
    reason: str, message: str, metadata: dict[str, str], retry_after_ms: int | None = None
) -> MeshError:
    """Rebuild the typed error that a peer sent; an unknown reason gives the root type."""
    by_reason = {cls.reason: cls for cls in _subclasses(MeshError)}
    error = by_reason.get(reason, MeshError)(message, retry_after_ms=retry_after_ms)
    error.metadata = dict(metadata)
    return error
