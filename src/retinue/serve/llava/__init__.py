"""The HTTP protocol of LLaVA's controller and model workers."""

NO_WORKER, UNREACHABLE, FAILED = 2, 3, 1
"""Error codes of messages."""

BUSY = "**NETWORK ERROR DUE TO HIGH TRAFFIC. PLEASE REGENERATE OR REFRESH THIS PAGE.**"
"""What its web page shows of any failure."""

TOO_LONG = "Exceeds max token length. Please start a new conversation, thanks."

LONGEST = 1024
"""Most tokens of an answer."""
