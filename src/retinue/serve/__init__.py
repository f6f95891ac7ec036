"""Many requests at once: an engine with continuous batching, and HTTP in front of it."""
