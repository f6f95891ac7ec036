"""Load a model folder, ask about a picture, ask again; then the same with transformers' classes.

    python examples/load_and_chat.py PATH picture.png

PATH is any folder or hub id that retinue reads: its own, an original LLaVA or a transformers one.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import retinue
from retinue.decode.chat import Chat
from retinue.decode.sampling import SamplingParams


def main(arguments: Sequence[str] | None = None) -> list[str]:
    parser = argparse.ArgumentParser(description="Two questions about a picture.")
    parser.add_argument("path")
    parser.add_argument("image")
    parser.add_argument("--max-new-tokens", type=int, default=64)
    options = parser.parse_args(arguments)

    model, processor = retinue.load(options.path)
    params = SamplingParams(max_new_tokens=options.max_new_tokens)
    chat = Chat(model, processor, params=params)
    answers = []
    # a picture is sent once; the conversation remembers it
    for question, images in (("What is in this picture?", [options.image]), ("What else?", [])):
        print(f"> {question}")
        answers.append("")
        for piece in chat.ask(question, images=images):
            print(piece, end="", flush=True)
            answers[-1] += piece
        print()

    # the model is a transformers model, and the processor is called as transformers' are
    content = [
        {"type": "image", "image": options.image},
        {"type": "text", "text": "What is in this picture?"},
    ]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
    )
    ids = model.generate(**inputs, max_new_tokens=options.max_new_tokens, num_beams=2)
    answers.append(processor.decode(ids[0, inputs["input_ids"].shape[1] :].tolist()))
    print(f"with two beams: {answers[-1]}")
    return answers


if __name__ == "__main__":
    main()
