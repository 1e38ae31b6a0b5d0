"""Linear merging: the weighted average of the models (model soups, Wortsman et al. 2022, arXiv:2203.05482)."""

from typing import Any, ClassVar, Literal

import torch
from pydantic import model_validator

from sst_merge.adapter import concatenate
from sst_merge.methods.base import MergeMethod, ModuleInputs, ModuleResult


class Linear(MergeMethod):
    """``(utility_weight * U + strength * S) / (utility_weight + strength)``: the average of the fine-tuned models."""

    title: ClassVar[str] = "Linear"
    source: ClassVar[str] = (
        "Wortsman et al. 2022, arXiv:2203.05482 (weight averaging); mergekit's linear with normalize"
    )

    name: Literal["linear"] = "linear"
    """Name of the method."""

    @model_validator(mode="after")
    def _some_weight(self) -> "Linear":
        if self.utility_weight + self.strength == 0:
            raise ValueError("utility_weight and strength are both 0: an average needs some weight")
        return self

    def merge_module(self, inputs: ModuleInputs, state: Any, rng: torch.Generator) -> ModuleResult:
        """Concatenate the factors under weights that sum to 1."""
        total = self.utility_weight + self.strength
        parts = [inputs.utility.scaled(self.utility_weight / total), inputs.safety.scaled(self.strength / total)]
        return ModuleResult(concatenate(parts))
