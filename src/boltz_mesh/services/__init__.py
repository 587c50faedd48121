"""Floor 4: the gRPC services, and who may call them."""
