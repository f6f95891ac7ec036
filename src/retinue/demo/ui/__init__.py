"""The web chat: a page over any server of the OpenAI API, in its process or beside it."""
