"""`python -m boltz_mesh.app.demo.guarded ...`: the command `boltz-mesh ...`, tied to its parent.

A server that is started by hand must run on when its terminal closes its input; the demo's must
not outlive the demo. So this ends the command, in order, at the end of the standard input.
"""

from __future__ import annotations

import os
import signal
import threading

from boltz_mesh.app.cli import main


def _end_with_input() -> None:
    while os.read(0, 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    threading.Thread(target=_end_with_input, daemon=True, name="parent-watch").start()
    main()
