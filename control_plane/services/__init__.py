"""Use cases. Store, clock and wake-up bus are handed in; nothing here knows gRPC or SQL."""
