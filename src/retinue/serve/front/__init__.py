"""Our API, and LLaVA's protocol, in front of other servers that speak OpenAI's API."""
