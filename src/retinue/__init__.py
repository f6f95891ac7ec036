"""retinue: a retinue of vision encoders in the service of one language model."""
