"""For tests of applications and netlayers: linked peers in memory, and a check of what a netlayer promises."""

from ocapn.testing.netlayers import check_netlayer
from ocapn.testing.peers import linked_peers, quiet
from ocapn.testing.stage import MakeNetlayer

__all__ = ["MakeNetlayer", "check_netlayer", "linked_peers", "quiet"]
