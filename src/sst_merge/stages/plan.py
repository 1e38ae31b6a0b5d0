"""Plan: everything that can be known before a model is loaded; every mistake that can be made before it."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch

from sst_merge.adapter import Updates, total_norm
from sst_merge.adapter_config import read_config
from sst_merge.adapter_io import (
    RECORD_FILE,
    AdapterHeader,
    check_together,
    plain_name,
    read_adapter,
    read_sum,
    sum_sha256,
    training_record,
    training_rows,
)
from sst_merge.chat_template import template_notes
from sst_merge.config import EvaluationConfig, RunConfig
from sst_merge.data import check_disjoint
from sst_merge.errors import AdapterError, ConfigError, ModelError, SSTMergeError
from sst_merge.estimates import minimum_detectable_difference
from sst_merge.model_files import check_weights, has_weights, model_identity, model_type, weights_identity
from sst_merge.models import QUANTISED, architecture, load_encoder, placement
from sst_merge.run_folder import RunFolder, require_free_space
from sst_merge.stages.rows import (
    Inputs,
    check_evaluation_texts,
    check_overlaps,
    check_texts,
    load_evaluation_rows,
    load_inputs,
    load_sources,
    load_tasks,
    row_notes,
    rows_sha256,
)
from sst_merge.statistics.kronecker_factors import stored_numbers
from sst_merge.statistics.sample_gradients import choose_side
from sst_merge.tasks import LmEval

CHANGED = 0.1
"""Share of answers that change between two arms, for what a test will detect; of the order seen in merges."""

Role = Literal["utility", "safety"]


@dataclass(frozen=True)
class Plan:
    """A checked run, nothing loaded yet."""

    config: RunConfig
    root: Path
    folder: RunFolder
    inputs: Inputs
    modules: dict[str, AdapterHeader]
    """Shape of each module, and rank of the utility update; 0 where no utility adapter has one."""
    safety_ranks: dict[str, int]
    """Rank of the safety update by module; 0 where no safety adapter has one."""
    identity: dict[str, Any]
    notes: tuple[str, ...]

    def sources(self, role: Role) -> list[tuple[Path, float]]:
        """Folder and weight of each adapter of one kind."""
        return _sources(self.config, self.root, role)

    def updates(self, role: Role) -> Updates:
        """The weighted sum of the adapters of one kind, in float32.

        Raises:
            AdapterError: See :func:`sst_merge.adapter_io.read_adapter`.
        """
        is_filled = self.config.adapters.missing_modules == "zero"
        shapes = {name: header.shape for name, header in self.modules.items()}
        return read_sum(self.sources(role), shapes=shapes if is_filled else None)

    def where(self, role: Role) -> str:
        """The folders of one kind, for messages."""
        return ", ".join(str(path) for path, _ in self.sources(role))


def plan(config: RunConfig, *, root: Path) -> Plan:
    """Check adapters against each other and the base, load the rows, and describe the run.

    Raises:
        SSTMergeError: For every mistake in the inputs that does not need the model's weights.
    """
    adapters = _labelled(config, root)
    headers = check_together(
        [(label, path) for label, _, path in adapters],
        allow_different_base=config.adapters.allow_different_base,
        allow_missing_modules=config.adapters.missing_modules == "zero",
    )
    # A value that is not finite must show before the run folder is made.
    empty = [label for label, _, folder in adapters if total_norm(read_adapter(folder).updates) == 0]
    shapes = {name: header.shape for each in headers for name, header in each.items()}
    ranks = {role: dict.fromkeys(sorted(shapes), 0) for role in ("utility", "safety")}
    for (_, role, _), each in zip(adapters, headers, strict=True):
        for name, header in each.items():
            ranks[role][name] += header.rank
    modules = {name: AdapterHeader(shapes[name], rank) for name, rank in ranks["utility"].items()}
    _check_shapes(config, modules)
    encoder = None
    if _reads_the_base(config):
        encoder = load_encoder(config.base_model, config.revision, config.chat_template)
        check_weights(config.base_model, config.revision)
    _check_store(config, root)
    inputs = load_inputs(config, root)
    _check_overlaps(inputs, adapters)
    if encoder is not None:
        calibrated = inputs.calibration_safety + inputs.calibration_utility
        check_texts(encoder, calibrated, "calibration", reads_answers=True)
        check_evaluation_texts(encoder, config.evaluation, inputs.tasks, inputs.evaluation)
    device, dtype = placement(config.device, config.dtype)
    asked_by = {name: task.asked_by for name, task in inputs.tasks.items() if isinstance(task, LmEval)}
    identity = {
        "placement": {
            "device": device,
            "dtype": dtype,
            **({"bitsandbytes": version("bitsandbytes")} if dtype in QUANTISED.values() else {}),
        },
        "config": config.model_dump(mode="json", exclude={"output": True, "calibration": {"store"}}),
        "inputs": {
            "base_model": model_identity(config.base_model, config.revision),
            "utility": sum_sha256(_sources(config, root, "utility")),
            "safety": sum_sha256(_sources(config, root, "safety")),
            "data": {
                "calibration.safety": rows_sha256(inputs.calibration_safety),
                "calibration.utility": rows_sha256(inputs.calibration_utility),
                **{f"evaluation.{task}": rows_sha256(rows) for task, rows in inputs.evaluation.items()},
            },
            **({"tasks": asked_by} if asked_by else {}),
        },
    }
    notes = _record_notes(config, adapters, identity["inputs"]["base_model"])
    notes += tuple(f"the {label} adapter changes nothing: its update is zero in every module" for label in empty)
    notes += (
        _module_notes(ranks)
        + _rank_notes(config, modules, ranks)
        + (template_notes(encoder.tokenizer, encoder.end_tokens) if encoder is not None else ())
        + _notes(config, inputs, adapters, same=identity["inputs"]["utility"] == identity["inputs"]["safety"])
    )
    return Plan(config, root, RunFolder(config.output), inputs, modules, ranks["safety"], identity, notes)


def _reads_the_base(config: RunConfig) -> bool:
    """Whether some stage puts texts to the base; else its config.json is all that is read of it."""
    return bool(config.requests()) or config.evaluation is not None


def _record_notes(config: RunConfig, adapters: list[tuple[str, Role, Path]], base: str) -> tuple[str, ...]:
    """What the adapters' folders say of their training must fit their part in the run, or is noted.

    Raises:
        AdapterError: If utility and safety are swapped, or an adapter was trained on other weights than the base's.
    """
    records = [(label, role, folder, training_record(folder)) for label, role, folder in adapters]
    trained_for = {
        role: {record["role"] for _, of, _, record in records if of == role and "role" in record}
        for role in ("utility", "safety")
    }
    if trained_for["utility"] == {"safety"} and trained_for["safety"] and "safety" not in trained_for["safety"]:
        raise AdapterError(
            "adapters.utility and adapters.safety are swapped: by their training.json the one was trained as a safety "
            f"adapter and the other as a {min(trained_for['safety'])} adapter."
        )
    notes, weights = [], ""
    is_there = has_weights(config.base_model)
    if not is_there and any({"base", "base_weights"} & record.keys() for *_, record in records):
        notes.append(f"{config.base_model} holds no weights: whether the adapters were trained on them is unchecked")
    if (
        is_there
        and any("base_weights" in record for *_, record in records)
        and not config.adapters.allow_different_base
    ):
        weights = weights_identity(config.base_model, config.revision)  # once: it reads all of a local base's weights
    for label, role, folder, record in records:
        if "role" in record and (record["role"] == "safety") != (role == "safety"):
            notes.append(f"the {label} adapter was trained as a {record['role']} adapter ({folder / RECORD_FILE})")
        if _differ(record.get("base_weights"), weights):
            raise AdapterError(
                f"the {label} adapter ({folder}) was trained on other weights than those of base_model "
                f"{config.base_model}:\n  then {record['base_weights']}   ({folder / RECORD_FILE})\n  now  {weights}\n"
                "  Use the base that it was trained on, or set adapters.allow_different_base: true."
            )
        if is_there and "base_weights" not in record and _differ(record.get("base"), base):
            notes.append(f"the files of {config.base_model} are not those that the {label} adapter was trained on")
    return tuple(notes)


def _differ(then: str | None, now: str) -> bool:
    """Whether two identities of one kind differ: what has another name elsewhere may be the same."""
    kinds = [identity.partition("sha256:")[0] for identity in (then or "", now)]
    return "sha256:" in now and kinds[0] == kinds[1] and then != now


def _module_notes(ranks: dict[str, dict[str, int]]) -> tuple[str, ...]:
    """Of modules that only one kind of adapter changes."""
    lacking = {role: [name for name, rank in of_module.items() if rank == 0] for role, of_module in ranks.items()}
    return tuple(
        f"no {role} adapter has {len(names)} of the {len(ranks[role])} modules, such as '{names[0]}': its update is "
        "zero there"
        for role, names in lacking.items()
        if names
    )


def _rank_notes(
    config: RunConfig, modules: dict[str, AdapterHeader], ranks: dict[str, dict[str, int]]
) -> tuple[str, ...]:
    """Of a written adapter of full rank, which few programs take."""
    if config.method.is_low_rank or config.rank != "exact":
        return ()
    sizes = [min(header.shape) for header in modules.values()]
    numbers = sum(size * sum(header.shape) for size, header in zip(sizes, modules.values(), strict=True))
    size = numbers * getattr(torch, config.adapter_dtype).itemsize / 1e6
    both = max(ranks["utility"][name] + ranks["safety"][name] for name in modules)
    note = (
        f"method {config.method.name} gives an adapter of full rank (up to {max(sizes)}, {size:,.0f} MB); with "
        f"rank: {both}, the rank of both adapters, the best approximation of that rank is written"
    )
    return (note,)


def _notes(config: RunConfig, inputs: Inputs, adapters: list[tuple[str, Role, Path]], *, same: bool) -> tuple[str, ...]:
    """What a user should hear before the run; ``same``: utility and safety adapter are one and the same."""
    named = read_config(adapters[0][2]).get("base_model_name_or_path") or ""
    notes = [note for task in inputs.tasks.values() if isinstance(task, LmEval) for note in task.notes]
    if named and plain_name(named) != plain_name(config.base_model):
        kinds = [model_type(name) for name in (named, config.base_model)]
        if None not in kinds and kinds[0] != kinds[1] and not config.adapters.allow_different_base:
            raise AdapterError(
                f"the adapters were trained on {named}, a {kinds[0]} model, and base_model {config.base_model} is a "
                f"{kinds[1]} model. Give their base, or set adapters.allow_different_base: true."
            )
        notes.append(
            f"the adapters name {named!r} as their base, the run uses {config.base_model!r}; the shapes agree, whether "
            "the weights do is unchecked"
        )
    if not named:
        notes.append("the utility adapter names no base model; that it was trained on this one is taken on trust")
    if same:
        notes.append("adapters.utility and adapters.safety are one and the same: there is nothing to merge")
    for role in ("utility", "safety"):
        folders = [source.path for source in config.adapters.of(role)]
        if len(set(folders)) < len(folders):
            notes.append(f"adapters.{role} names one folder more than once; its update is added as often")
    families = {task.family for task in inputs.tasks.values()}
    if config.evaluation is not None and (lacking := [f for f in ("safety", "utility") if f not in families]):
        notes.append(
            f"evaluation has no {' and no '.join(lacking)} task: no Safety Tax is stated, and the verdict finds "
            f"{'no gain' if 'safety' in lacking else 'no price'} because none is looked for"
        )
    notes += config.method.notes("method")
    for number, method in enumerate(config.comparisons):
        notes += method.notes(f"comparisons.{number}")
    notes += row_notes(inputs, config)
    for label, _, folder in adapters:
        if config.evaluation is not None and not training_rows(folder):
            notes.append(
                f"the {label} adapter does not say what it was trained on: overlap with the test rows is unchecked"
            )
    return tuple(notes)


def _check_shapes(config: RunConfig, modules: dict[str, AdapterHeader]) -> None:
    """The adapters' modules must be linear modules of the base, of the same shapes.

    Raises:
        ModelError: Naming the module that is not.
    """
    shapes = architecture(config.base_model, config.revision).shapes
    for name, header in modules.items():
        if name not in shapes:
            raise ModelError(
                f"adapters: module '{name}' is not a linear module of base_model {config.base_model}, or it is "
                "its output head, which is not merged."
            )
        if header.shape != shapes[name]:
            raise ModelError(
                f"adapters: module '{name}' has an update of shape {header.shape}, but the weight in base_model "
                f"{config.base_model} is {shapes[name]}: the adapters were trained on a model of another size."
            )


def _check_store(config: RunConfig, root: Path) -> None:
    """Statistics go into a folder that is there or can be made.

    Raises:
        ConfigError: If a file is in its way.
    """
    if config.calibration is not None and config.calibration.store is not None:
        store = (root / config.calibration.store).resolve()
        existing = next(path for path in (store, *store.parents) if path.exists())
        if not existing.is_dir():
            raise ConfigError(f"calibration.store: {existing} is a file. Give a folder, which is made if need be.")


def problems(config: RunConfig, first: SSTMergeError, *, root: Path) -> list[SSTMergeError]:
    """The mistake that :func:`plan` or its run folder refused, and every other that it does not hide."""
    steps: list[Callable[[], object]] = [
        *(partial(read_adapter, folder) for _, _, folder in _labelled(config, root)),
        lambda: _record_notes(config, _labelled(config, root), model_identity(config.base_model, config.revision)),
        partial(architecture, config.base_model, config.revision),
        *(
            (
                partial(load_encoder, config.base_model, config.revision, config.chat_template),
                partial(check_weights, config.base_model, config.revision),
            )
            if _reads_the_base(config)
            else ()
        ),
        partial(placement, config.device, config.dtype),
        partial(_check_store, config, root),
        partial(RunFolder(config.output).refuse_foreign, {}),
    ]
    calibration, evaluation = config.calibration, config.evaluation
    if calibration is not None and config.requests():
        for name, sources, needs_answer in (
            ("safety", calibration.safety, True),
            ("utility", calibration.utility, True),
            ("harmless", calibration.harmless or [], False),
        ):
            key = f"calibration.{name}"
            steps.append(partial(load_sources, sources, config.seed, root, key, needs_answer=needs_answer))
    for number, task in enumerate(evaluation.tasks if evaluation else []):
        assert evaluation is not None
        steps.append(partial(_load_task, evaluation.model_copy(update={"tasks": [task]}), config.seed, root, number))
    found = {str(first): first}
    for step in steps:
        try:
            step()
        except SSTMergeError as error:
            found.setdefault(str(error), error)
    return list(found.values())


def _load_task(evaluation: EvaluationConfig, seed: int, root: Path, number: int) -> None:
    """Load one task's rows; ``number`` is its place in the run file."""
    load_evaluation_rows(evaluation, load_tasks(evaluation, root), seed=seed, root=root, first=number)


def _sources(config: RunConfig, root: Path, role: Role) -> list[tuple[Path, float]]:
    return [(root / source.path, source.weight) for source in config.adapters.of(role)]


def _labelled(config: RunConfig, root: Path) -> list[tuple[str, Role, Path]]:
    """Every adapter: what messages call it (numbered where there are several of a kind), its kind and its folder."""
    found: list[tuple[str, Role, Path]] = []
    roles: tuple[Role, ...] = ("utility", "safety")
    for role in roles:
        sources = _sources(config, root, role)
        for number, (path, _) in enumerate(sources, start=1):
            found.append((role if len(sources) == 1 else f"{role} {number}", role, path))
    return found


def describe(made: Plan) -> dict[str, Any]:
    """``plan.json``: per module shapes, ranks and side; per run what will be measured and how large it gets."""
    is_joint = any(request.span == "joint" for request in made.config.requests())
    modules = {}
    for name, header in made.modules.items():
        side = choose_side(header.shape)
        rank = made.safety_ranks[name]
        dimensions = min(rank + header.rank if is_joint else rank, *header.shape)
        modules[name] = {
            "shape": list(header.shape),
            "utility_rank": header.rank,
            "safety_rank": rank,
            "side": side,
            "coordinates": dimensions * min(header.shape),
        }
    return {
        "schema": "sst-merge/plan/1",
        "method": made.config.method.model_dump(mode="json"),
        "comparisons": [method.model_dump(mode="json") for method in made.config.comparisons],
        "statistics_required": sorted({request.statistic for request in made.config.requests()}),
        "calibration_samples": {
            "safety": len(made.inputs.calibration_safety),
            "utility": len(made.inputs.calibration_utility),
        },
        "calibration_prompts": {
            "safety": len({row.id for row in made.inputs.calibration_safety}),
            "utility": len({row.id for row in made.inputs.calibration_utility}),
        },
        "evaluation_samples": {task: len(rows) for task, rows in made.inputs.evaluation.items()},
        "detectable_differences": _detectable_differences(made),
        "statistics_bytes": _statistics_bytes(made, modules),
        "adapter_parameters": _adapter_parameters(made),
        "notes": list(made.notes),
        "modules": modules,
    }


def _detectable_differences(made: Plan) -> dict[str, float | None]:
    """What each test of a rate will detect with 80 % power if a tenth of its answers change; ``None`` above 1."""
    counts = {
        name: len(made.inputs.evaluation[name]) for name, task in made.inputs.tasks.items() if task.primary.is_binary
    }
    found = {name: minimum_detectable_difference(CHANGED, n) for name, n in counts.items()}
    return {name: value if value <= 1 else None for name, value in found.items()}


def _statistics_bytes(made: Plan, modules: dict[str, dict[str, Any]]) -> int:
    """Size of all statistics: gradients of every sample in float32, or the panels of two factors in float64."""
    calibration = made.config.calibration
    points = 2 if calibration is not None and calibration.has_two_points else 1
    samples = points * (len(made.inputs.calibration_safety) + len(made.inputs.calibration_utility))
    total = 0
    for request in made.config.requests():
        for module in modules.values():
            small = min(module["shape"])
            rank = module["coordinates"] // small
            if request.statistic == "kronecker_factors":
                total += 8 * 2 * (stored_numbers(small) + stored_numbers(rank))
            else:
                total += 4 * samples * rank * small
    return total


def missing_statistics_bytes(made: Plan, folders: Collection[Path]) -> int:
    """What the run's statistics will still take, with what is in their ``folders`` already; at least 0."""
    there = sum(file.stat().st_size for folder in folders for file in folder.rglob("*") if file.is_file())
    return max(0, describe(made)["statistics_bytes"] - there)


def require_room(made: Plan, *, replace: bool = False, reusable: Collection[Path] = ()) -> None:
    """Refuse a new run that the disk is too small for, before anything of it is there.

    Args:
        made: The run.
        replace: Whether a run in the same folder is thrown away.
        reusable: Folders of its statistics that this run would measure again, or its store.

    Raises:
        RunFolderError: If the disk is too small.
    """
    if made.folder.manifest_file.is_file() and not replace:
        return
    adapter = 4 * _adapter_parameters(made) + 50_000_000
    if made.config.calibration and made.config.calibration.store:
        require_free_space(made.config.output, adapter, "the adapter")
    else:
        missing = missing_statistics_bytes(made, reusable)
        require_free_space(made.config.output, missing + adapter, "the statistics and the adapter")


def write_plan(made: Plan, *, command: str, replace: bool = False, reusable: Collection[Path] = ()) -> dict[str, Any]:
    """Open the run folder and write ``plan.json``.

    Args:
        made: The run.
        command: What the user typed.
        replace: Throw an existing run away.
        reusable: Folders of its statistics that this run would measure again, or its store; they stay.

    Raises:
        RunFolderError: If the folder belongs to another run.
    """
    description = describe(made)
    made.folder.open(made.identity, command=command, replace=replace, reusable=reusable)
    made.folder.write_json(made.folder.plan_file, description)
    return description


def _adapter_parameters(made: Plan) -> int:
    """Number of values in the written adapter."""
    total = 0
    for name, header in made.modules.items():
        d_out, d_in = header.shape
        full = min(d_out, d_in)
        exact = header.rank + made.safety_ranks[name] if made.config.method.is_low_rank else full
        rank = exact if made.config.rank == "exact" else min(made.config.rank, exact)
        total += rank * (d_out + d_in)
    return total


def _check_overlaps(inputs: Inputs, adapters: list[tuple[str, Role, Path]]) -> None:
    """Training, calibration and evaluation rows must not share a prompt.

    Raises:
        DataError: Naming the uses that share prompts.
    """
    calibrated = inputs.calibration_safety + inputs.calibration_utility
    prompts = {row.id: row.prompt for rows in (calibrated, *inputs.evaluation.values()) for row in rows}
    asked = [row.id for row in inputs.calibration_utility if row.answer_tokens is None]
    harmless = [row.id for row in inputs.calibration_utility if row.answer_tokens is not None]
    for name, ids in (("utility", asked), ("harmless", harmless)):
        both = {"calibration.safety": [row.id for row in inputs.calibration_safety], f"calibration.{name}": ids}
        check_disjoint(both, prompts)
        check_overlaps(both, inputs.evaluation)
    used = {f"evaluation.{task}": [row.id for row in rows] for task, rows in inputs.evaluation.items()}
    used["calibration"] = [row.id for row in calibrated]
    for label, _, folder in adapters:
        learnt = training_rows(folder)
        for use, ids in used.items():
            check_disjoint({f"{label} adapter's training": learnt & set(ids), use: ids}, prompts)
