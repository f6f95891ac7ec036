"""Floor 4, data: formats, mixtures, length index, epoch plans, loader, check and show."""
