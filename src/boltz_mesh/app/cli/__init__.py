"""The `boltz-mesh` command. `main` is what the console script calls."""

from boltz_mesh.app.cli.root import main

__all__ = ["main"]
