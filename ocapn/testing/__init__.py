"""For tests of applications and netlayers: linked peers in memory, and checks of what netlayers and storage promise."""

from ocapn.testing.netlayers import check_netlayer
from ocapn.testing.peers import linked_peers, quiet
from ocapn.testing.stage import MakeNetlayer
from ocapn.testing.storage import check_storage

__all__ = ["MakeNetlayer", "check_netlayer", "check_storage", "linked_peers", "quiet"]
