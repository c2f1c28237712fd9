"""Bytes to messages and back: framing, Syrup, and the records of CapTP."""
