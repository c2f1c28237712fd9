"""State that outlives the process. Nothing is here yet: a baggage and durable sessions come with version 0.2."""
