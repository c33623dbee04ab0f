"""The etcd side of the daemon: a snapshot of the records, then every change, once and in order.

Reading order: `changes` (what is handed out), `settings`, `ledger` and `progress` (the pure core:
what is known, and what a watch stream says), `session` (one connection's life), `store` (the loop
over connections, the public face). `channel` alone imports grpc, `messages` alone protobuf.

This package file imports nothing, so that reading the configuration does not load gRPC.
"""
