"""Bytes over this process's TCP connections, as the kernel counts them: TLS and all.

Linux's `struct tcp_info` (uapi/linux/tcp.h) has, for each connection, the bytes that the peer has
acknowledged and those received in order, retransmissions left out.
"""

from __future__ import annotations

import os
import socket
import struct
from dataclasses import dataclass, field
from typing import Final

#: Eight bytes, 24 32-bit numbers and two 64-bit rates come before tcpi_bytes_acked.
_COUNTERS: Final = struct.Struct("=QQ")
_COUNTERS_OFFSET: Final = 8 + 24 * 4 + 2 * 8
_INFO_BYTES: Final = _COUNTERS_OFFSET + _COUNTERS.size


@dataclass(slots=True)
class WireMeter:
    """Counts the connections to one port of a peer, also those that are closed meanwhile.

    Attributes:
        port: of the peer.
        seen: last counters of each connection, by the inode of its socket.
    """

    port: int
    seen: dict[int, tuple[int, int]] = field(default_factory=dict)

    def read(self) -> tuple[int, int]:
        """Bytes sent and received so far, over all connections that were ever seen."""
        for name in os.listdir("/proc/self/fd"):
            try:
                inode = os.stat(int(name)).st_ino
                connection = socket.socket(fileno=int(name))
            except OSError:
                continue  # no socket, or closed while we looked
            try:
                if connection.getpeername()[1] == self.port:
                    self.seen[inode] = _counters(connection)
            except (OSError, IndexError, TypeError):
                continue  # no peer, or one without a port
            finally:
                # The descriptor is not ours to close.
                connection.detach()
        return (
            sum(sent for sent, _ in self.seen.values()),
            sum(received for _, received in self.seen.values()),
        )


def _counters(connection: socket.socket) -> tuple[int, int]:
    info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _INFO_BYTES)
    sent, received = _COUNTERS.unpack_from(info, _COUNTERS_OFFSET)
    return sent, received
