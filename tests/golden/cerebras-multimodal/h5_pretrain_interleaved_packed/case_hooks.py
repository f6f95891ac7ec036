"""Hooks written for the fixtures (not part of the seed): they exercise every field of the semantic data array."""

import copy


def interleaved_chat_hook(example, **kw):
    """Turns are {"role", "parts"[, "loss"][, "drop"][, "attn"]}; parts are passed through unchanged."""
    out = []
    for t in example.get(kw["multi_turn_key"]) or []:
        d = {
            "type": t["role"],
            "content": [{k: v for k, v in p.items() if v is not None} for p in t["parts"]],
        }
        for src, dst in (
            ("loss", "semantic_loss_weight"),
            ("drop", "semantic_drop_mask"),
            ("attn", "semantic_attention_mask"),
        ):
            if t.get(src) is not None:
                d[dst] = copy.deepcopy(t[src])
        out.append(d)
    return out


def interleaved_doc_hook(example, **kw):
    """A document is one entry whose content interleaves images and text."""
    d = {
        "content": [
            {k: v for k, v in p.items() if v is not None} for p in example.get(kw["doc_key"]) or []
        ]
    }
    for src, dst in (
        ("loss", "semantic_loss_weight"),
        ("drop", "semantic_drop_mask"),
        ("attn", "semantic_attention_mask"),
    ):
        v = example.get(kw.get(src + "_key", ""), None)
        if v is not None:
            d[dst] = v
    return [d]
