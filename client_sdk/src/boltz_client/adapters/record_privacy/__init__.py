"""Trainers that protect single records of this device's own table: DP-SGD, on the device.

Record-level privacy is a unit of its own, beside the mesh's client-level one, and weaker: it is
about one row being in the table or not. `boltz_client.record_ledger.RECORD_CAVEAT` says what it
leaves out. Its noise does not count towards a round's, nor a round's towards it.

    from boltz_client.adapters.record_privacy.linear import LinearRecordTrainer    # numpy
    from boltz_client.adapters.record_privacy.torch import TorchRecordTrainer      # opacus

Abadi et al. 2016, "Deep Learning with Differential Privacy", algorithm 1, with three differences:
sums are integers and the noise is the discrete Gaussian from a cryptographic stream
(`record_privacy.sums`); rows are drawn by the same kind of stream; and a step divides by the
expected batch of the row count's power of two, which the mesh is told at check-in anyway, rather
than by the batch that was drawn or by a count that one record changes.
"""

from boltz_client.adapters.record_privacy.settings import RecordPrivacy
from boltz_client.record_ledger import RECORD_CAVEAT, RecordLedger

__all__ = ["RECORD_CAVEAT", "RecordLedger", "RecordPrivacy"]
