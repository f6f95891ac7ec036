"""Floor 4: sampling and the batched decoding loop, the reference for everything faster."""
