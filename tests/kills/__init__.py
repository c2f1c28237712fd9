"""Two processes that stream numbered calls to each other, and are killed at random moments."""
