"""Single-turn prompts of LLaMA2-Accessory: an instruction, with or without an input.

Source: Alpha-VLLM/LLaMA2-Accessory; `alpaca` is that of tatsu-lab/stanford_alpaca.
"""

from __future__ import annotations

from retinue.core.errors import ConfigError

TASK = "Below is an instruction that describes a task"
PAIRED = ", paired with an input that provides further context"
ASKED = "Write a response that appropriately completes the request"
SHORT = " using a single word or phrase"


PLAIN = "\n\n### Instruction:\n{instruction}\n\n### Response:"
GIVEN = "\n\n### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:"
QUESTION = "Generate a question whose answer is:\n{instruction}\n\nQuestion:\n"
PROMPTS: dict[str, tuple[str, str]] = {
    "alpaca": (f"{TASK}. {ASKED}.{PLAIN}", f"{TASK}{PAIRED}. {ASKED}.{GIVEN}"),
    "shortqa": (f"{TASK}. {ASKED}{SHORT}.{PLAIN}",) * 2,
    "qg": (QUESTION, QUESTION),
    "caption": ("", ""),
    "None": ("{instruction}", "{instruction}"),
}
"""Name -> the prompt without and with an input."""


def single_prompt(name: str, *, instruction: str | None, input: str | None = None) -> str:
    """The prompt of one question. An input of blanks is none. Raises ConfigError for the name."""
    if name not in PROMPTS:
        raise ConfigError(f"prompt {name!r}", rule=f"known: {', '.join(PROMPTS)}")
    plain, paired = PROMPTS[name]
    if input is None or not input.strip():
        return plain.replace("{instruction}", instruction or "")
    halves = [half.replace("{instruction}", instruction or "") for half in paired.split("{input}")]
    return input.join(halves)
