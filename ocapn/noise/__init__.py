"""Noise for OCapN, without I/O: the protocol, who is at the other end, and packets (spec/netlayers.md)."""
