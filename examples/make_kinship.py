"""Write examples/data/kinship.jsonl: who is X to Z, given what X is to Y and Y to Z.

    python examples/make_kinship.py

Every row is a short family puzzle in one of many wordings, its answer one word that follows from the text.
The generator is complete: relations compose by the table below, names, wordings and one sentence that does not
matter are drawn at random from a seeded generator, and a puzzle never occurs twice.
"""

import json
import random
from pathlib import Path

SEED = 20261122
ROWS = 3600

# (what X is to Y, what Y is to Z) -> what X is to Z. In a plain family (no step-parents) each has one reading.
COMPOSITION = {
    ("mother", "mother"): "grandmother",
    ("mother", "father"): "grandmother",
    ("father", "mother"): "grandfather",
    ("father", "father"): "grandfather",
    ("sister", "mother"): "aunt",
    ("sister", "father"): "aunt",
    ("brother", "mother"): "uncle",
    ("brother", "father"): "uncle",
    ("son", "brother"): "nephew",
    ("son", "sister"): "nephew",
    ("daughter", "brother"): "niece",
    ("daughter", "sister"): "niece",
    ("son", "son"): "grandson",
    ("son", "daughter"): "grandson",
    ("daughter", "son"): "granddaughter",
    ("daughter", "daughter"): "granddaughter",
    ("daughter", "uncle"): "cousin",
    ("son", "uncle"): "cousin",
    ("daughter", "aunt"): "cousin",
    ("son", "aunt"): "cousin",
    ("mother", "sister"): "mother",
    ("mother", "brother"): "mother",
    ("father", "sister"): "father",
    ("father", "brother"): "father",
    ("sister", "sister"): "sister",
    ("sister", "brother"): "sister",
    ("brother", "sister"): "brother",
    ("brother", "brother"): "brother",
}
# Relations in which Y is certainly a woman or a man, so that the name fits.
WOMEN = "Anna Bea Clara Dora Edith Flora Greta Hanna Ida Julia Karin Lena Maria Nora Olga Petra Rosa Sara Thea Vera"
MEN = "Adam Ben Carl David Emil Felix Georg Hugo Ivan Jonas Karl Leo Max Noah Oscar Paul Robert Simon Tom Victor"
FEMALE = {"mother", "sister", "daughter", "aunt", "grandmother", "niece", "granddaughter"}

STATEMENTS = ("{x} is the {r} of {y}.", "{y}'s {r} is called {x}.", "{x} is {y}'s {r}.", "{y} has {a} {r} named {x}.")
QUESTIONS = (
    "What is {x} to {z}? Answer with one word.",
    "How is {x} related to {z}? Reply with a single word.",
    "Which word says what {x} is to {z}?",
    "{x} is {z}'s what? One word, please.",
)
DISTRACTORS = (
    "",
    "",
    "{n} lives next door. ",
    "{n} is a friend of the family. ",
    "They all met at {n}'s wedding. ",
    "{n} took the photo of them. ",
)


def article(noun: str) -> str:
    """The indefinite article of a noun."""
    return "an" if noun[0] in "aeiou" else "a"


def puzzle(rng: random.Random) -> dict[str, str]:
    """One prompt and its answer."""
    (first, second), answer = rng.choice(sorted(COMPOSITION.items()))
    names = {"f": WOMEN.split(), "m": MEN.split()}
    for pool in names.values():
        rng.shuffle(pool)
    x = names["f" if first in FEMALE else "m"].pop()
    y = names["f" if second in FEMALE else "m"].pop()
    z = names[rng.choice("fm")].pop()
    facts = [
        rng.choice(STATEMENTS).format(x=x, y=y, r=first, a=article(first)),
        rng.choice(STATEMENTS).format(x=y, y=z, r=second, a=article(second)),
    ]
    rng.shuffle(facts)
    distractor = rng.choice(DISTRACTORS).format(n=names[rng.choice("fm")].pop())
    question = rng.choice(QUESTIONS).format(x=x, z=z)
    return {"prompt": f"{facts[0]} {facts[1]} {distractor}{question}", "answer": answer.capitalize()}


def main() -> None:
    """Draw puzzles until there are enough different ones, and write them."""
    rng = random.Random(SEED)
    rows: dict[str, dict[str, str]] = {}
    while len(rows) < ROWS:
        row = puzzle(rng)
        rows.setdefault(row["prompt"], row)
    target = Path(__file__).parent / "data" / "kinship.jsonl"
    target.write_text("".join(json.dumps(row) + "\n" for row in rows.values()), encoding="utf-8")
    print(f"{len(rows)} puzzles -> {target}")


if __name__ == "__main__":
    main()
