"""Floor 0: errors, registries, specs, composition of configs. No torch."""
