"""Floor 1: tokenizers, dialogue templates and label policies."""
