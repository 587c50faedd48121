"""Take part in a Boltz Mesh: train on your own data, send only encrypted, bounded deltas.

The async API is here; `boltz_client.blocking` has the same for scripts, `boltz_client.adapters`
has trainers for numpy functions, torch modules and scikit-learn estimators.
"""

from boltz_client.charges import Budget
from boltz_client.client import MeshClient
from boltz_client.enrolment import Enrolled, Profile, enroll
from boltz_client.keystore import KeyStore
from boltz_client.ledger import Ledger, LedgerEvent
from boltz_client.models import PulledModel
from boltz_client.notices import Notice, NoticeKind, Summary
from boltz_client.owner import OwnerLimits
from boltz_client.peer_checks import PeerMemory
from boltz_client.quality import quality_bucket
from boltz_client.trainer import RoundContext, Trainer, TrainResult
from boltz_protocol.errors import MeshError
from boltz_protocol.messages import RoundMode

__all__ = [
    "Budget",
    "Enrolled",
    "KeyStore",
    "Ledger",
    "LedgerEvent",
    "MeshClient",
    "MeshError",
    "Notice",
    "NoticeKind",
    "OwnerLimits",
    "PeerMemory",
    "Profile",
    "PulledModel",
    "RoundContext",
    "RoundMode",
    "Summary",
    "TrainResult",
    "Trainer",
    "enroll",
    "quality_bucket",
]
