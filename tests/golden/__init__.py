"""A store of each released version, as it was written then: `python -m tests.golden NAME` makes one of this version.

What a golden store holds is the same for all, so that one test reads them all.
"""
