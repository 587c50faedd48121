from __future__ import annotations

import os
import socket

from boltz_mesh.app.demo.wire import WireMeter


def test_it_counts_one_peer_and_leaves_every_descriptor_alone() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        meter = WireMeter(listener.getsockname()[1])
        assert meter.read() == (0, 0)
        with socket.create_connection(listener.getsockname()) as client:
            peer, _ = listener.accept()
            with peer:
                client.sendall(b"x" * 1000)
                assert len(peer.recv(1000, socket.MSG_WAITALL)) == 1000
                peer.sendall(b"y" * 77)
                assert len(client.recv(77, socket.MSG_WAITALL)) == 77
                before = os.listdir("/proc/self/fd")
                sent, received = meter.read()
                # The handshake's SYN counts as one byte acknowledged.
                assert (sent - 1000 in {0, 1}, received) == (True, 77)
                assert os.listdir("/proc/self/fd") == before
                client.sendall(b"still open")
        # A closed connection still counts.
        assert meter.read() == (sent, received)
