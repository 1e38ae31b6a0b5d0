"""Peak memory of calibration and merge on a large random model, beside what the arithmetic of docs/speed.md says.

    python benchmarks/memory.py [--layers 12] [--hidden 1536] [--samples 64] [--tokens 256] [--rank 16]

The model is of the Mistral class with random float32 weights; the adapters are random LoRA of all linear modules.
Phases run in processes of their own, so that each one's peak is its own.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from transformers import MistralConfig, MistralForCausalLM

from sst_merge.adapter import Update, Updates
from sst_merge.methods import METHODS
from sst_merge.models import Base, Encoded, applied, linear_modules
from sst_merge.progress import SilentReporter
from sst_merge.stages.merge import merge_updates
from sst_merge.statistics import Request, SampleGradients, Statistics
from sst_merge.statistics.sample_gradients import choose_side, patch_bases

VOCABULARY = 32_000
ANSWER = 64


def config(layers: int, hidden: int) -> MistralConfig:
    """Mistral-7B's proportions at another size."""
    return MistralConfig(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        intermediate_size=hidden * 7 // 2,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 128,
        num_key_value_heads=max(1, hidden // 512),
    )


def shapes(layers: int, hidden: int) -> dict[str, tuple[int, int]]:
    """Of all linear modules, without allocating the model."""
    with torch.device("meta"):
        model = MistralForCausalLM(config(layers, hidden))
    return {name: (m.out_features, m.in_features) for name, m in linear_modules(model).items()}


def adapters(found: dict[str, tuple[int, int]], rank: int) -> tuple[Updates, Updates]:
    """Two random adapters."""
    generator = torch.Generator().manual_seed(0)

    def factor(rows: int, columns: int) -> torch.Tensor:
        return 0.01 * torch.randn(rows, columns, generator=generator)

    def one() -> Updates:
        return {name: Update(factor(d_out, rank), factor(rank, d_in)) for name, (d_out, d_in) in found.items()}

    return one(), one()


def calibrate(options: argparse.Namespace) -> None:
    """Measure ``options.samples`` random samples of ``options.tokens`` tokens, 64 of them the answer."""
    torch.manual_seed(0)
    model = MistralForCausalLM(config(options.layers, options.hidden)).eval().requires_grad_(False)
    modules = linear_modules(model)
    base = Base("random", model, None, modules, frozenset({2}))
    utility, safety = adapters(shapes(options.layers, options.hidden), options.rank)
    ids = torch.randint(3, VOCABULARY, (options.samples, options.tokens)).tolist()
    samples = [Encoded(tuple(row), options.tokens - ANSWER) for row in ids]
    with applied(base, utility, "random"):
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
    utility, safety = adapters(shapes(options.layers, options.hidden), options.rank)
    store = Statistics({Request("sample_gradients"): SampleGradients.load(options.folder)})
    merge_updates(METHODS["sst"](), utility, safety, store, seed=0, reporter=SilentReporter())


def main() -> None:
    """Run both phases in processes of their own; or one of them, if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in {
        "layers": 12, "hidden": 1536, "samples": 64, "tokens": 256, "rank": 16, "batch_size": 4,
    }.items():  # fmt: skip
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=default)
    parser.add_argument("--phase", choices=("calibrate", "merge"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.phase:
        start = time.perf_counter()
        {"calibrate": calibrate, "merge": merge}[options.phase](options)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print(json.dumps({"seconds": time.perf_counter() - start, "peak_gb": peak / 1e9}))
        return
    found = shapes(options.layers, options.hidden)
    with torch.device("meta"):
        parameters = sum(p.numel() for p in MistralForCausalLM(config(options.layers, options.hidden)).parameters())
    coordinates = [
        options.rank * (d_out if choose_side((d_out, d_in)) == "output" else d_in) for d_out, d_in in found.values()
    ]
    print(f"{parameters / 1e9:.2f} B parameters, {4 * parameters / 1e9:.2f} GB of weights in float32")
    print(f"{sum(coordinates) / 1e6:.2f} M coordinates, {4 * sum(coordinates) / 1e6:.1f} MB a sample")
    print(f"statistics by the arithmetic: {4 * sum(coordinates) * options.samples / 1e9:.2f} GB on disk")
    with tempfile.TemporaryDirectory() as folder:
        for phase in ("calibrate", "merge"):
            done = subprocess.run(
                [sys.executable, __file__, *sys.argv[1:], "--phase", phase, "--folder", folder],
                check=True, stdout=subprocess.PIPE, text=True,
            )  # fmt: skip
            told = json.loads(done.stdout.splitlines()[-1])
            print(f"{phase}: {told['seconds']:.0f} s, peak {told['peak_gb']:.2f} GB", flush=True)
        written = sum(file.stat().st_size for file in Path(folder).rglob("*.safetensors"))
        print(f"statistics as written: {written / 1e9:.2f} GB")


if __name__ == "__main__":
    main()
