"""FSDP2 taken off a module again: its class, its hooks and its marks.

torch 2.13 offers `fully_shard` and no way back, while a run of several stages needs plain
parameters between them; `tests/unit/test_parallel_shard.py` watches the private names used here.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.distributed import _composable_state as composable
from torch.distributed._composable.contract import REGISTRY_KEY, STATE_KEY
from torch.distributed.fsdp import FSDPModule

MARKS = ("_is_fsdp_managed_module", "_fsdp_use_orig_params")


def unwrap(module: nn.Module) -> None:
    """Make a module what it was before `fully_shard`; its parameters stay the divided ones."""
    assert isinstance(module, FSDPModule)
    state: Any = module._get_fsdp_state()
    state._pre_forward_hook_handle.remove()
    state._post_forward_hook_handle.remove()
    for group in state._fsdp_param_groups:
        for handles in (
            group._module_to_pre_save_state_dict_hook_handle,
            group._module_to_pre_load_state_dict_hook_handle,
        ):
            for handle in handles.values():
                handle.remove()
            handles.clear()
    module.__class__ = type(module).__mro__[FSDPModule._orig_cls_mro_index]
    for key in (STATE_KEY, REGISTRY_KEY):
        module.__dict__.pop(key, None)
    composable._module_state_mapping.pop(module, None)
    for below in module.modules():
        for mark in MARKS:
            below.__dict__.pop(mark, None)
