"""Task arithmetic (Ilharco et al. 2023, arXiv:2212.04089): the weighted sum of updates."""

from typing import Any, ClassVar, Literal

import torch

from sst_merge.adapter import concatenate
from sst_merge.methods.base import MergeMethod, ModuleInputs, ModuleResult


class TaskArithmetic(MergeMethod):
    """``utility_weight * U + strength * S``, exactly: a sum of updates, not of LoRA factors."""

    title: ClassVar[str] = "Task arithmetic"
    source: ClassVar[str] = "Ilharco et al. 2023, arXiv:2212.04089 (adding task vectors)"

    name: Literal["task_arithmetic"] = "task_arithmetic"
    """Name of the method."""

    def merge_module(self, inputs: ModuleInputs, state: Any, rng: torch.Generator) -> ModuleResult:
        """Concatenate the weighted factors."""
        parts = [inputs.utility.scaled(self.utility_weight), inputs.safety.scaled(self.strength)]
        return ModuleResult(concatenate(parts))
