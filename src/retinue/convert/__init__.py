"""Foreign checkpoints <-> retinue: formats by contents, invertible key rules, configs both ways."""
