"""Programs to read and to run: `python -m examples.greeter`, and so on. Each runs its peers in one process."""
