"""Other systems' Python interfaces over our path, so that their snippets run as they are."""
