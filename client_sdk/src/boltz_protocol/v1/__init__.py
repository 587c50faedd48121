"""Generated stubs of the contract in `proto/boltz_mesh/v1`; never edited by hand.

`make stubs` writes them, `make check` fails when they differ from the proto files. Each
`NAME_pb2` holds the messages of `NAME.proto`, each `NAME_pb2_grpc` its services. Their Python home
is this package, so that the client's distribution owns no name of the server's; on the wire and in
the descriptor pool everything is `boltz_mesh.v1`.
"""
