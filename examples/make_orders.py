"""Write examples/data/orders.jsonl: an order in everyday words, and the same order as JSON.

    python examples/make_orders.py

The second utility task of the ablation, of another kind than the puzzles: the answer is longer, has a fixed form, and
copies from the prompt instead of drawing a conclusion. Names, things, numbers and wordings are drawn at random from a
seeded generator; an order never occurs twice.
"""

import json
import random
from pathlib import Path

SEED = 20261123
ROWS = 900

NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
THINGS = (
    "notebook lamp mug blanket backpack candle umbrella teapot cushion clock mirror basket kettle scarf vase ladder "
    "toolbox tent hammock pillow"
)
COLOURS = "red blue green black white yellow grey brown orange purple"
NAMES = (
    "Anders Baker Castillo Dietrich Eriksen Fischer Garcia Hansen Ivanova Jensen Kowalski Lindgren Moreau Novak Okafor "
    "Petrov Quinn Rossi Silva Tanaka Usman Varga Weber Yilmaz Zhou"
)
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday"
CITIES = "Berlin Lisbon Oslo Madrid Vienna Prague Dublin Athens Warsaw Helsinki Zurich Lyon Porto Turin Ghent"

OPENINGS = ("Hello, this is {name}.", "My name is {name}.", "{name} here.", "Good morning, {name} speaking.")
WISHES = (
    "I would like {number} {colour} {things}, delivered to {city} on {day}.",
    "Please send {number} {colour} {things} to {city}; {day} would be fine.",
    "Could you ship {number} {things} in {colour} to {city} by {day}?",
    "For {day} I need {number} {colour} {things} in {city}.",
)
EXTRAS = ("", "", "Thank you!", "The last delivery was late.", "I paid by card.", "No gift wrap, please.")
REQUESTS = (
    "Write this order as JSON.",
    "Turn the order into JSON.",
    "What is the order as JSON?",
    "Give me this order in JSON.",
)


def order(rng: random.Random) -> dict[str, str]:
    """One prompt and its answer."""
    count = rng.randint(2, len(NUMBERS))
    thing, colour, day, name, city = (rng.choice(words.split()) for words in (THINGS, COLOURS, DAYS, NAMES, CITIES))
    number = rng.choice((str(count), NUMBERS[count - 1]))
    things = thing + "s"
    wish = rng.choice(WISHES).format(number=number, colour=colour, things=things, city=city, day=day)
    text = " ".join(filter(None, (rng.choice(OPENINGS).format(name=name), wish, rng.choice(EXTRAS))))
    answer = json.dumps({"name": name, "item": thing, "colour": colour, "count": count, "city": city, "day": day})
    return {"prompt": f"{text} {rng.choice(REQUESTS)}", "answer": answer}


def main() -> None:
    """Draw orders until there are enough different ones, and write them."""
    rng = random.Random(SEED)
    rows: dict[str, dict[str, str]] = {}
    while len(rows) < ROWS:
        row = order(rng)
        rows.setdefault(row["prompt"], row)
    target = Path(__file__).parent / "data" / "orders.jsonl"
    target.write_text("".join(json.dumps(row) + "\n" for row in rows.values()), encoding="utf-8")
    print(f"{len(rows)} orders -> {target}")


if __name__ == "__main__":
    main()
