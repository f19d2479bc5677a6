"""The gRPC edge: thin servicers, protobuf to domain and back, nothing else."""
