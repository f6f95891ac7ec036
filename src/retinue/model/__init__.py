"""Floor 2: the path from pixels and ids to loss or logits. No tokenizer, no files, no ranks."""
