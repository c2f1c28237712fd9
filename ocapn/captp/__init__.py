"""The protocol core: no I/O, no clock, no randomness of its own; bytes and time in, turns out."""
