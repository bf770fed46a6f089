"""What a phase freezes, applied to a model."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from transferkit.backbones.stages import stage_indices
from transferkit.freezing import freeze, unfreeze
from transferkit.heads import head_module
from transferkit.training.phases import Phase


def apply_plan(model: nn.Module, phase: Phase) -> None:
    """Freeze what a phase freezes, and nothing else."""
    if phase.train == "all":
        unfreeze(model)
    elif phase.last_stages is not None:
        stages = stage_indices(model)
        # The head's own number is one more than that of the last stage.
        first = max(stages.values()) - phase.last_stages
        freeze(model, except_=lambda name, _: stages[name] >= first)
    else:
        freeze(model, except_=phase.train)
    if not phase.freeze_batch_norm:
        return
    # A norm in the head is as new as the head.
    in_head = set(head_module(model).modules())
    norms = {
        id(parameter)
        for norm in _batch_norms(model)
        if norm not in in_head
        for parameter in norm.parameters()
    }
    if norms:
        freeze(model, except_=lambda _, parameter: parameter.requires_grad and id(parameter) not in norms)


def _batch_norms(model: nn.Module) -> list[_BatchNorm]:
    return [module for module in model.modules() if isinstance(module, _BatchNorm)]


def norms_have_learned(model: nn.Module) -> bool:
    """Whether batch norm has statistics that are worth keeping; random weights have none."""
    return any(
        norm.running_mean is not None and bool(norm.running_mean.any()) for norm in _batch_norms(model)
    )
