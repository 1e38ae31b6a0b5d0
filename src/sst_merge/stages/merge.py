"""Merge: apply a method to every module and write an ordinary PEFT adapter, with what was kept and what was lost."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

import torch

from sst_merge.adapter import Update, Updates, concatenate, iterate_shared, squared_norm
from sst_merge.adapter_config import CONFIG_FILE, read_config
from sst_merge.adapter_io import WEIGHTS_FILE, folder_sha256, read_adapter, write_adapter
from sst_merge.errors import AdapterError
from sst_merge.linalg import truncated
from sst_merge.methods import MergeMethod, module_generator
from sst_merge.progress import Reporter
from sst_merge.stages.plan import Plan
from sst_merge.statistics import Statistics

MODULES_AT_ONCE, DENSE_MODULES_AT_ONCE = 4, 2
"""At most; each takes the memory of its statistics, or of several dense matrices."""
Item = TypeVar("Item")
Result = TypeVar("Result")
ENERGIES = ("squared_norm", "safety_energy", "utility_energy")


class Merged(NamedTuple):
    """What a method makes of two adapters."""

    updates: Updates
    """float32."""
    modules: dict[str, dict[str, Any]]
    """Diagnostics of each module."""
    whole: dict[str, Any]
    """Energies and spectrum of all modules: sums and unions, or the method's own where it solves one common problem."""


def merge_updates(
    method: MergeMethod,
    utility: Updates,
    safety: Updates,
    statistics: Statistics | None,
    *,
    seed: int,
    reporter: Reporter,
) -> Merged:
    """Merge two adapters module by module.

    Args:
        method: What to do.
        utility: Updates of the utility adapter; the same modules as ``safety``.
        safety: Updates of the safety adapter.
        statistics: What calibration measured, if the method requires any.
        seed: Of random methods.
        reporter: Shows progress.

    Raises:
        AdapterError: If the module names differ, or a merged value is not finite.
    """
    if utility.keys() != safety.keys():
        raise AdapterError(
            f"the adapters differ in {len(utility.keys() ^ safety.keys())} module(s); nothing was merged."
        )

    def inputs() -> Any:
        for name, first, second in iterate_shared(utility, safety):
            yield method.inputs(name, first, second, statistics or Statistics())

    state = method.prepare(inputs())
    merged: Updates = {}
    diagnostics: dict[str, dict[str, Any]] = {}
    with reporter.task(f"Merging: {method.title}", len(utility)) as advance:
        for name, result in _in_parallel(
            lambda module: (module.name, method.merge_module(module, state, module_generator(seed, module.name))),
            inputs(),
            MODULES_AT_ONCE if method.is_low_rank else DENSE_MODULES_AT_ONCE,
        ):
            merged[name] = _finite(name, result.update)
            diagnostics[name] = result.diagnostics
            advance(1)
    return Merged(merged, diagnostics, {**_sum(diagnostics), "spectrum": _spectrum(diagnostics), **method.whole(state)})


def merge_reusing(
    patches: dict[str, Merged],
    method: MergeMethod,
    utility: Updates,
    safety: Updates,
    statistics: Statistics | None,
    *,
    seed: int,
    reporter: Reporter,
) -> Merged:
    """As :func:`merge_updates`, with the patch of an earlier merge if only utility weight and strength differ.

    The weights of a merged model are the same to the last bit. The factors lack the patch's components of zeros, and
    the diagnostics the spectrum of the soft rule.

    Args:
        patches: Merges of patches alone, of these adapters and statistics with this seed; added to.
        method: What to do.
        utility: Updates of the utility adapter; the same modules as ``safety``.
        safety: Updates of the safety adapter.
        statistics: What calibration measured.
        seed: Of random methods.
        reporter: Shows progress.

    Raises:
        AdapterError: As :func:`merge_updates`.
    """
    alone = (method.patch_alone() or method).without_spectrum()
    key = patch_key(method)
    if key is None:
        return merge_updates(alone, utility, safety, statistics, seed=seed, reporter=reporter)
    if key not in patches:
        made = merge_updates(alone, utility, safety, statistics, seed=seed, reporter=reporter)
        patches[key] = made._replace(updates={n: u.without_zero_components() for n, u in made.updates.items()})
    updates = {}
    for name, patch in patches[key].updates.items():
        parts = (utility[name].scaled(method.utility_weight), patch.scaled(method.strength))
        updates[name] = _finite(name, concatenate(parts))
    return patches[key]._replace(updates=updates)


def patch_key(method: MergeMethod) -> str | None:
    """What two methods have in common whose patches are one; ``None`` where a merge has no patch of its own."""
    alone = method.patch_alone()
    return None if alone is None else alone.model_dump_json()


def _finite(name: str, update: Update) -> Update:
    """The merged update of a module.

    Raises:
        AdapterError: If a value is not finite.
    """
    if not bool(torch.isfinite(update.b).all() and torch.isfinite(update.a).all()):
        raise AdapterError(f"the merged update of module '{name}' holds NaN or infinity; nothing was written.")
    return update


def _in_parallel(work: Callable[[Item], Result], items: Iterable[Item], at_once: int) -> Iterator[Result]:
    """Results in the order of the items, several at a time, each in one thread.

    Factorisations of a few hundred rows gain little from threads of their own, modules side by side do; and a result
    does not depend on how many threads there are.
    """
    threads = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(min(threads, at_once), initializer=torch.set_num_threads, initargs=(1,)) as workers:
            yield from workers.map(work, items)
    finally:
        torch.set_num_threads(threads)


def merge(made: Plan, statistics: Statistics | None, reporter: Reporter) -> dict[str, Any]:
    """Write ``adapter/`` and ``diagnostics.json``; both are kept if they are there and belong together.

    Returns:
        The diagnostics: per module and in total what the method kept, what the rank and the precision of the
        written adapter cost, and the adapter's hash.

    Raises:
        AdapterError: If the adapters differ in their modules or a merged value is not finite.
    """
    if made.folder.diagnostics_file.is_file() and made.folder.adapter.is_dir():
        diagnostics = made.folder.read_json(made.folder.diagnostics_file)
        missing = [name for name in (CONFIG_FILE, WEIGHTS_FILE) if not (made.folder.adapter / name).is_file()]
        if missing:
            raise AdapterError(
                f"{made.folder.adapter / missing[0]} is missing from the adapter that this run wrote.\n"
                f"  Remove {made.folder.adapter}, and merge again: sst-merge run FILE"
            )
        if folder_sha256(made.folder.adapter) != diagnostics["adapter_sha256"]:
            raise AdapterError(
                f"{made.folder.adapter} is not the adapter that this run wrote: diagnostics.json has another hash.\n"
                "  Merge again: sst-merge run FILE --replace"
            )
        return diagnostics
    with made.folder.timed("merge"):
        utility, safety = made.updates("utility"), made.updates("safety")
        method = made.config.method
        made_of = merge_updates(method, utility, safety, statistics, seed=made.config.seed, reporter=reporter)
        merged, whole = made_of.updates, made_of.whole
        written = (
            merged if made.config.rank == "exact" else {n: truncated(u, made.config.rank) for n, u in merged.items()}
        )
        like = read_config(made.sources("utility")[0][0])
        base_name = like.get("base_model_name_or_path") or made.config.base_model
        write_adapter(
            made.folder.adapter,
            written,
            like={**like, "base_model_name_or_path": base_name},
            dtype=getattr(torch, made.config.adapter_dtype),
            card=_card(made, base_name),
        )
        read = read_adapter(made.folder.adapter).updates
        diagnostics = {
            "schema": "sst-merge/diagnostics/1",
            "method": method.model_dump(mode="json"),
            "adapter_sha256": folder_sha256(made.folder.adapter),
            "modules_merged": len(merged),
            "modules_in_adapters": len(utility),
            "total": _kept(whole),
            "written_relative_error": _written_loss(merged, read),
            **_without_energies(whole),
            "modules": [
                {
                    "name": name,
                    **_kept(values),
                    "written_relative_error": _written_loss({name: merged[name]}, read),
                    **_without_energies(values),
                }
                for name, values in made_of.modules.items()
            ],
        }
        made.folder.write_json(made.folder.diagnostics_file, diagnostics)
    return diagnostics


def _energy_names() -> set[str]:
    return {name + suffix for name in ENERGIES for suffix in ("", "_kept")}


def _without_energies(values: dict[str, Any]) -> dict[str, Any]:
    """Diagnostics as the method gave them, less what :func:`_kept` makes fractions of."""
    return {key: value for key, value in values.items() if key not in _energy_names()}


def _sum(modules: dict[str, dict[str, Any]]) -> dict[str, float]:
    """Energies over all modules; those that no module has are left out."""
    found = {key: [values[key] for values in modules.values() if key in values] for key in _energy_names()}
    return {key: sum(values) for key, values in found.items() if values}


def _kept(values: dict[str, Any]) -> dict[str, float | None]:
    """Fractions kept of the patch's norm and energies; ``None`` where there was nothing to keep."""

    def ratio(key: str) -> float | None:
        whole = values.get(key)
        return values[f"{key}_kept"] / whole if whole and f"{key}_kept" in values else None

    norm = ratio("squared_norm")
    return {
        "patch_norm_kept": None if norm is None else norm**0.5,
        "safety_energy_kept": ratio("safety_energy"),
        "utility_energy_kept": ratio("utility_energy"),
    }


def _spectrum(modules: dict[str, dict[str, Any]]) -> list[float]:
    """Generalised eigenvalues of all modules together, falling; empty for methods without a spectrum."""
    return sorted((value for module in modules.values() for value in module.get("spectrum", [])), reverse=True)


def _written_loss(merged: Updates, written: Updates) -> float | None:
    """``|merged - written|_F / |merged|_F`` over the modules merged: what truncation and the cast cost together.

    0 where the factors are the same but for components of zeros; ``None`` for a merge of zeros.
    """
    whole = sum(squared_norm(update) for update in merged.values())
    pairs = [(merged[name].without_zero_components(), written[name].without_zero_components()) for name in merged]
    changed = [
        (update, other)
        for update, other in pairs
        if not (torch.equal(update.b, other.b) and torch.equal(update.a, other.a))
    ]
    difference = sum(squared_norm(concatenate([one, other.scaled(-1.0)])) for one, other in changed)
    return (difference / whole) ** 0.5 if whole else None


def _card(made: Plan, base_name: str) -> str:
    """Model card of the merged adapter: how it was made and how to load it."""
    method = made.config.method
    parameters = "\n".join(
        f"- {key}: {value}" for key, value in method.model_dump(mode="json", exclude_none=True).items()
    )
    measured = (
        "Its gain and its cost were not measured."
        if made.config.evaluation is None
        else "What the merge gained and what it cost is in the run's `safety_tax.json` and `report.html`; "
        "this card claims nothing."
    )
    return f"""---
base_model: {base_name}
library_name: peft
tags: [lora, merge, sst-merge]
---
# Merged adapter ({method.title})

Made by SST-Merge, with the base model `{made.config.base_model}`, from LoRA adapters of {base_name}:

- utility: `{made.config.adapters.described("utility")}` (sha256 {made.identity["inputs"]["utility"][:16]})
- safety: `{made.config.adapters.described("safety")}` (sha256 {made.identity["inputs"]["safety"][:16]})

{parameters}

An ordinary PEFT adapter: `PeftModel.from_pretrained(base_model, "this folder")`. {measured}
"""
