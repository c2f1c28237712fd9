"""Months in minutes: supervised peers on a mock clock, with everything that happens to them."""
