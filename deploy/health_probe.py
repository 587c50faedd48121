"""Ask a mesh server whether it serves; the exit code is the answer (0 yes, 1 no, 2 wrong usage).

For a container's HEALTHCHECK and for hosts without `grpc_health_probe`. It speaks to the
health-only port, which is the one port without TLS: it has no other service and listens where
probes come from. The address is the argument, or this machine at the port that the server is told
by MESH_LISTEN__HEALTH_PORT.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

#: Read here as the server reads it, so that one setting moves both.
PORT_SETTING = "MESH_LISTEN__HEALTH_PORT"
#: Below the HEALTHCHECK's own timeout of 5 s, so that the reason is printed before it strikes.
TIMEOUT_S = 3.0


def main(arguments: Sequence[str]) -> int:
    """Probe once, say what was found, return the exit code."""
    port = os.environ.get(PORT_SETTING)
    if len(arguments) > 1 or not (arguments or port):
        print(f"usage: health_probe.py [HOST:PORT], or set {PORT_SETTING}", file=sys.stderr)
        return 2
    address = arguments[0] if arguments else f"127.0.0.1:{port}"
    with grpc.insecure_channel(address) as channel:
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(), timeout=TIMEOUT_S
            )
        except grpc.RpcError as error:
            print(f"{address}: no answer: {error.code().name}", file=sys.stderr)
            return 1
    status = health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
    print(f"{address}: {status}")
    return 0 if answer.status == health_pb2.HealthCheckResponse.SERVING else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
