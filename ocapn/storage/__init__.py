"""What a peer keeps for those who call it, each for itself: `ocapn.current_storage()` (spec/storage.md)."""
