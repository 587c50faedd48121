"""The gradient of an operator's validation loss at the version that a round starts from."""

from __future__ import annotations

import logging
from typing import Final

import numpy as np
import numpy.typing as npt

from boltz_mesh.coordinator.parts import Parts
from boltz_mesh.coordinator.publish import plan_tensors
from boltz_mesh.rounds.plan import Plan
from boltz_mesh.services.files import EncryptedReader, model_context
from boltz_mesh.storage.models import ModelVersion
from boltz_protocol.errors import ShapeMismatch
from boltz_protocol.model_file import canonical_layout

_log: Final = logging.getLogger(__name__)


def gradient_of(parts: Parts, plan: Plan, base: ModelVersion) -> npt.NDArray[np.float64] | None:
    """(parameters,) float64; None without a validation set that fits, or in a round of which no row
    may be looked at. Blocks; call it from a thread.

    Raises: NotFound, DecryptionFailed, DigestMismatch: the version's file is gone or damaged.
    """
    known = parts.validation.get(base.model_id)
    looks = plan.mode == "grouped" or (plan.mode == "open" and plan.privacy == "none")
    if known is None or not looks:
        return None
    layout = canonical_layout(plan_tensors(plan))
    parameters = np.empty(layout.coordinates, "<f4")
    with EncryptedReader(
        parts.blobs,
        parts.keyring.kek,
        model_context(parts.keyring.mesh_id, base.model_id, base.version),
        base.weights,
        base.size_bytes,
    ) as reader:
        reader.read_into(parameters.data.cast("B"), layout.data_offset)
    try:
        return known.gradient(parameters)
    except ShapeMismatch as error:
        # The plan may be newer than the file. The round is worth more than a figure about it.
        _log.warning("no contributions for %s: %s", base.model_id, error.message)
        return None
