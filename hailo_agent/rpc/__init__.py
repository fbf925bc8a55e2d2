"""gRPC on a unix socket, serving and dialling, for services it knows nothing about."""
