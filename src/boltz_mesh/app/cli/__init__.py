"""The `boltz-mesh` command. `main` is what the console script calls."""

import os

# gRPC writes notes of its own to the terminal; what goes wrong is told by the commands. It reads
# this when it is first imported, hence the place.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

from boltz_mesh.app.cli.root import main

__all__ = ["main"]
