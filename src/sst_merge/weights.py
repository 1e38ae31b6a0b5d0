"""Weights of a base while an update is added to them, and their hash."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sst_merge.adapter import Update, Updates, squared_norm
from sst_merge.errors import ModelError
from sst_merge.models import Base, LinearModule, at_least_float32, is_quantised, module_shape, weight_matrix


def check_modules(base: Base, updates: Updates, where: str) -> None:
    """Every module of an adapter must exist in the model with the same shape and a weight of its own.

    Raises:
        ModelError: Naming the first module that does not fit.
    """
    owners: dict[int, list[str]] = {}
    for name, parameter in base.model.named_parameters(remove_duplicate=False):
        owners.setdefault(parameter.data_ptr(), []).append(name)
    for name, update in updates.items():
        if name not in base.modules:
            near = [known for known in base.modules if known.rpartition(".")[2] == name.rpartition(".")[2]]
            raise ModelError(
                f"{where}: module '{name}' is not a linear module of {base.reference}"
                + (f" (it has '{near[0]}')." if near else ".")
                + " The adapter was trained on another architecture."
            )
        expected = module_shape(base.modules[name])
        if update.shape != expected:
            raise ModelError(
                f"{where}: module '{name}' has an update of shape {update.shape}, but the weight in {base.reference} "
                f"is {expected}. The adapter was trained on a model of another size."
            )
        shared = owners[base.modules[name].weight.data_ptr()]
        if len(shared) > 1 and not is_quantised(base.modules[name]):  # on those an update acts beside the weight
            raise ModelError(
                f"{where}: in {base.reference} {' and '.join(shared)} are one and the same, so an update of module "
                f"'{name}' would change more than PEFT does. Train both adapters without it (target_modules)."
            )


@dataclass(frozen=True)
class Applied:
    """What :func:`applied` did to the weights."""

    weights_sha256: str
    """Of all tensors of the model as they were evaluated."""
    update_norm: float
    """Frobenius norm of the change over all modules, after the cast to the model's precision."""
    unchanged_modules: tuple[str, ...]
    """Modules whose weight has the same bytes as the base's."""


@contextmanager
def added(base: Base, updates: Updates, where: str) -> Iterator[dict[str, Tensor]]:
    """The base with ``W + b @ a`` in place of ``W``, in float32 and cast once; the old weights come back on exit.

    Meanwhile the old weights of the changed modules wait in host memory, so that a GPU holds the model once. A
    quantised weight stays as it is, and ``b @ a`` acts beside it, as PEFT has it: quantising the sum would lose small
    updates.

    Args:
        base: Its weights change while the context is open.
        updates: Added to the weights; empty for the base itself.
        where: Name for error messages.

    Yields:
        The old weights of the modules whose weight may have changed, on the CPU.

    Raises:
        ModelError: If a module is missing, has another shape or shares its weight.
    """
    check_modules(base, updates, where)
    inside = [name for name in sorted(updates) if not is_quantised(base.modules[name])]
    old = {name: weight_matrix(base.modules[name]).detach().to("cpu", copy=True) for name in inside}
    handles = []
    try:
        with torch.no_grad():
            for name in sorted(updates):
                compact = updates[name].without_zero_components()
                if not compact.rank:
                    continue
                if name in old:
                    weight = weight_matrix(base.modules[name])
                    weight.copy_(at_least_float32(weight) + compact.dense().to(weight.device))
                else:
                    handles.append(_add_beside(base.modules[name], compact, base.dtype))
        yield old
    finally:
        for handle in handles:
            handle.remove()
        with torch.no_grad():
            for name, weight in old.items():
                weight_matrix(base.modules[name]).copy_(weight)


@contextmanager
def applied(base: Base, updates: Updates, where: str) -> Iterator[Applied]:
    """:func:`added`, and what it did to the weights: for whoever reports on the model that comes of it.

    Arguments and errors are those of :func:`added`.
    """
    with added(base, updates, where) as old:
        squared, unchanged, digest = 0.0, [], hashlib.sha256()
        beside = [name for name in sorted(updates) if name not in old]
        for name in beside:
            compact = updates[name].without_zero_components()
            squared += squared_norm(compact)
            if not compact.rank:
                unchanged.append(name)
                continue
            for factor in (compact.b, compact.a):
                digest.update(f"{name} {tuple(factor.shape)}\n".encode() + factor.contiguous().numpy().tobytes())
        for name, before in old.items():
            weight = weight_matrix(base.modules[name]).detach()
            change = at_least_float32(weight) - at_least_float32(before.to(weight.device))
            norm = float(torch.linalg.vector_norm(change, dtype=torch.float64))
            squared += norm**2
            if norm == 0:
                unchanged.append(name)
        weights = weights_sha256(base.model)
        if any(name not in unchanged for name in beside):
            digest.update(weights.encode())  # what acts beside the weights is part of what is evaluated
            weights = digest.hexdigest()
        yield Applied(weights, squared**0.5, tuple(unchanged))


def _add_beside(module: LinearModule, update: Update, dtype: torch.dtype) -> Any:
    """Let an update act on a module's input beside its weight; the handle takes it off again."""
    b, a = (factor.to(module.weight.device, dtype) for factor in (update.b, update.a))

    def on_forward(_module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return output + nn.functional.linear(nn.functional.linear(inputs[0].to(dtype), a), b).to(output.dtype)

    return module.register_forward_hook(on_forward)


def weights_sha256(model: nn.Module) -> str:
    """SHA-256 over sorted (name, dtype, shape, bytes) of a model's parameters, 64 hexadecimal digits."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.named_parameters()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
