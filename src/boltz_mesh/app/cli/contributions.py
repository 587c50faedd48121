"""What the clients or groups of a round contributed, as a table."""

from __future__ import annotations

from collections.abc import Sequence

from boltz_mesh.app.cli.output import print_table
from boltz_protocol.v1 import aggregator_pb2 as pb


def print_contributions(contributions: Sequence[pb.Contribution]) -> None:
    """A row each; groups are named by their place, and their clients are counted.

    Influence is the fall of the validation loss, so that above 0 is good; without a validation set
    the column is not there.
    """
    known = any(each.HasField("influence") for each in contributions)
    grouped = any(len(each.clients) > 1 for each in contributions)
    columns = ["group", ">clients"] if grouped else ["client"]
    columns += [">share", ">agreement", *([">influence"] if known else []), "looks"]
    print_table(
        "contributions",
        columns,
        [
            (
                each.row,
                *((len(each.clients),) if grouped else ()),
                f"{each.share:.1%}",
                f"{each.agreement:.2f}",
                *((f"{each.influence:+.3g}",) if known else ()),
                each.verdict.replace("-", " "),
            )
            for each in contributions
        ],
    )
