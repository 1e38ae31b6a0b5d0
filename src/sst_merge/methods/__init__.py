"""Merge methods: one explicit list that the CLI, the configuration and the contract tests read."""

from typing import Annotated

from pydantic import Field

from sst_merge.methods.base import MergeMethod, ModuleInputs, ModuleResult, module_generator
from sst_merge.methods.dare import Dare
from sst_merge.methods.linear import Linear
from sst_merge.methods.sst import Sst
from sst_merge.methods.task_arithmetic import TaskArithmetic
from sst_merge.methods.ties import Ties

METHODS: dict[str, type[MergeMethod]] = {
    "sst": Sst,
    "task_arithmetic": TaskArithmetic,
    "linear": Linear,
    "ties": Ties,
    "dare": Dare,
}

Method = Annotated[Sst | TaskArithmetic | Linear | Ties | Dare, Field(discriminator="name")]

__all__ = ["METHODS", "MergeMethod", "Method", "ModuleInputs", "ModuleResult", "module_generator"]
