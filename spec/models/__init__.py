"""Machine-checked models of the durable-session protocol: `python -m spec.models`."""
