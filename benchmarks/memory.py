"""Time and peak memory of calibration and merge on a random model of Mistral-7B's proportions, beside the arithmetic.

    python benchmarks/memory.py                                        (2.0 GB of weights; some minutes on 2 cores)
    python benchmarks/memory.py --size 7b --dtype bfloat16 --device cuda --samples 512 --tokens 512 --batch-size 2

Each phase runs in a process of its own, so that its peak is its own; ``nothing`` only loads the model, and what the
calibration needs on top of it stands beside what docs/speed.md says it should. Weights and both adapters are random.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from transformers import MistralConfig, MistralForCausalLM

from sst_merge.adapter import Update, Updates
from sst_merge.allocator import keep_freed_memory
from sst_merge.inference import Encoded
from sst_merge.methods import METHODS
from sst_merge.models import Base, linear_modules, module_shape
from sst_merge.progress import SilentReporter
from sst_merge.stages.merge import merge_updates
from sst_merge.statistics import Request, SampleGradients, Statistics
from sst_merge.statistics.sample_gradients import choose_side, patch_bases
from sst_merge.weights import added

VOCABULARY = 32_000
ANSWER = 64
SIZES = {"0.4b": (1024, 3584, 32), "7b": (4096, 14336, 32)}
"""Hidden size, intermediate size, layers."""


def config(size: str) -> MistralConfig:
    """Mistral-7B's proportions: a quarter of the heads for keys and values."""
    hidden, intermediate, layers = SIZES[size]
    return MistralConfig(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        num_key_value_heads=hidden // 256,
        head_dim=64,
    )


def model(options: argparse.Namespace) -> Any:
    """With random weights, made where and in the precision in which they are used."""
    torch.manual_seed(0)
    torch.set_default_dtype(getattr(torch, options.dtype))
    with torch.device(options.device):
        made = MistralForCausalLM(config(options.size)).eval().requires_grad_(False)
    torch.set_default_dtype(torch.float32)
    return made


def shapes(size: str) -> dict[str, tuple[int, int]]:
    """Of all linear modules, without allocating the model."""
    with torch.device("meta"):
        found = linear_modules(MistralForCausalLM(config(size)))
    return {name: module_shape(module) for name, module in found.items()}


def adapters(options: argparse.Namespace) -> tuple[Updates, Updates]:
    """Two random adapters of all linear modules."""
    generator = torch.Generator().manual_seed(0)

    def factor(rows: int, columns: int) -> torch.Tensor:
        return 0.01 * torch.randn(rows, columns, generator=generator)

    def one() -> Updates:
        return {
            name: Update(factor(d_out, options.rank), factor(options.rank, d_in))
            for name, (d_out, d_in) in shapes(options.size).items()
        }

    return one(), one()


def reset_peak(options: argparse.Namespace) -> None:
    """On a GPU, forget what applying an adapter took for a moment; a process's host memory has no such reset."""
    if options.device != "cpu":
        torch.cuda.reset_peak_memory_stats()


def nothing(options: argparse.Namespace) -> None:
    """Load the model and apply the utility adapter: what is there before anything is measured."""
    loaded = model(options)
    base = Base("random", loaded, SimpleNamespace(pad_token_id=0), linear_modules(loaded), frozenset({2}))
    with added(base, adapters(options)[0], "random"):
        reset_peak(options)


def calibrate(options: argparse.Namespace) -> None:
    """Measure random samples of ``options.tokens`` tokens, the last 64 of them the answer."""
    loaded = model(options)
    base = Base("random", loaded, SimpleNamespace(pad_token_id=0), linear_modules(loaded), frozenset({2}))
    utility, safety = adapters(options)
    ids = torch.randint(3, VOCABULARY, (options.samples, options.tokens)).tolist()
    samples = [Encoded(tuple(row), options.tokens - ANSWER) for row in ids]
    with added(base, utility, "random"):
        reset_peak(options)
        SampleGradients.measure(
            base,
            patch_bases(safety),
            samples,
            options.folder,
            safety_samples=len(samples) // 2,
            weights=[1.0] * len(samples),
            batch_size=options.batch_size,
        )


def merge(options: argparse.Namespace) -> None:
    """Merge from the statistics on disk."""
    utility, safety = adapters(options)
    store = Statistics({Request("sample_gradients"): SampleGradients.load(options.folder)})
    merge_updates(METHODS["sst"](), utility, safety, store, seed=0, reporter=SilentReporter())


PHASES = {"nothing": nothing, "calibrate": calibrate, "merge": merge}


def arithmetic(options: argparse.Namespace) -> dict[str, float]:
    """Bytes by the formulas of docs/speed.md."""
    hidden, intermediate, layers = SIZES[options.size]
    width = torch.finfo(getattr(torch, options.dtype)).bits // 8
    coordinates = sum(
        options.rank * (d_out if choose_side((d_out, d_in)) == "output" else d_in)
        for d_out, d_in in shapes(options.size).values()
    )
    tokens = options.batch_size * options.tokens
    return {
        "activations": layers * (6 * hidden + 3 * intermediate) * width * tokens,
        "logits of answers": options.batch_size * (ANSWER + 1) * VOCABULARY * 8,
        "gradients of a batch": options.batch_size * coordinates * 4,
        "statistics on disk": options.samples * coordinates * 4,
    }


def main() -> None:
    """Run the phases in processes of their own; or one of them, if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="0.4b")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--device", default="cpu")
    for name, default in {"samples": 16, "tokens": 512, "rank": 16, "batch_size": 2}.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=default)
    parser.add_argument("--phase", choices=PHASES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    keep_freed_memory()
    if options.phase:
        start = time.perf_counter()
        PHASES[options.phase](options)
        told = {
            "seconds": time.perf_counter() - start,
            "host": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            "device": torch.cuda.max_memory_allocated() if options.device != "cpu" else None,
        }
        print(json.dumps(told))
        return
    expected = arithmetic(options)
    for name, count in expected.items():
        print(f"by the arithmetic, {name}: {count / 1e9:.2f} GB")
    peaks: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        for phase in PHASES:
            done = subprocess.run(
                [sys.executable, __file__, *sys.argv[1:], "--phase", phase, "--folder", folder],
                check=True,
                stdout=subprocess.PIPE,
                text=True,
            )
            told = json.loads(done.stdout.splitlines()[-1])
            peaks[phase] = told["device"] or told["host"]
            device = f", {told['device'] / 1e9:.2f} GB on the device" if told["device"] else ""
            print(
                f"{phase}: {told['seconds']:.0f} s, peak {told['host'] / 1e9:.2f} GB in host memory{device}", flush=True
            )
        written = sum(file.stat().st_size for file in Path(folder).rglob("batch-*.safetensors"))
    above = peaks["calibrate"] - peaks["nothing"]
    planned = sum(expected[name] for name in ("activations", "logits of answers", "gradients of a batch"))
    print(f"calibration on top of the weights: {above / 1e9:.2f} GB; by the arithmetic {planned / 1e9:.2f} GB")
    print(f"statistics as written: {written / 1e9:.2f} GB")


if __name__ == "__main__":
    main()
