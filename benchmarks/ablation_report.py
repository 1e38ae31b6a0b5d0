"""What the ablation's results say: choices made on validation rows, numbers of test rows, intervals over both.

Intervals are 95 % percentile intervals of a paired bootstrap of two stages: seeds (adapters and rows) are drawn with
replacement, and rows within each drawn seed; all methods share the draws. With three seeds they are rough.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Lines = dict[str, dict[str, Any]]
"""Results of one split of one cell by the key of a trial or an arm."""
Results = dict[str, dict[str, Lines]]
"""Cell name to ``validation`` and ``test``."""

ARMS = ("base", "utility", "safety")
TARGETS = (0.80, 0.95)
TASKS = ("refusal", "over_refusal", "utility")
NATS = ("refusal_nll", "utility_nll")
OURS = "SST"
NETWORK = "SST global"
"""The variant that solves one problem for the whole network."""
BASELINES = ("Fisher merging", "task arithmetic", "TIES", "DARE")
GAIN_SHARES = (0.5, 0.8)
"""Matched safety gains, as shares of the safety adapter's own gain in nats."""
LOSSES = (0.01, 0.05)
"""Matched utility losses, nats per token."""
COMMON_RANGE = 0.8
"""The area under a front is taken over safety gains from 0 to this share of the safety adapter's gain."""
REFERENCE_LOSS = 0.5
"""Utility loss, nats per token, that stands for all larger ones and for gains that no trial of a method reaches."""
SURE = 0.95
"""A target counts as reached where at least this share of the draws reaches it."""
DRAWS = 1000
GRID = 81
NOT_REACHED = "not reached"


def rate(line: dict[str, Any], task: str) -> float:
    """Mean score."""
    return float(np.mean(line["scores"][task]))


def path_keys(lines: Lines, variant: str) -> list[str]:
    """Trials of a method from weak to strong: those that differ by strength alone, or else by price alone.

    The utility adapter has its whole weight, and a second dial the value of most trials.
    """
    own = {
        key: line["settings"]
        for key, line in lines.items()
        if line.get("variant") == variant and line["settings"]["utility_weight"] == 1
    }
    paths: dict[str, list[str]] = {}
    for key, settings in own.items():
        rest = {name: value for name, value in settings.items() if name != "strength"}
        paths.setdefault(repr(sorted(rest.items(), key=str)), []).append(key)
    longest = max(paths.values(), key=len, default=[])
    if len(longest) == 1:
        return sorted(own, key=lambda key: -own[key]["keep"]["soft"])
    return sorted(longest, key=lambda key: own[key]["strength"])


def front_keys(validation: Lines, variant: str) -> list[str]:
    """Trials of a method that no other trial of it equals or beats both in safety and in utility, by likelihood."""
    own = [line for line in validation.values() if line.get("variant") == variant]
    points = {line["key"]: (rate(line, "refusal_nll"), rate(line, "utility_nll")) for line in own}

    def is_beaten(key: str) -> bool:
        safety, utility = points[key]
        return any(
            s <= safety and u <= utility and ((s, u) != (safety, utility) or other < key)
            for other, (s, u) in points.items()
            if other != key
        )

    return sorted(key for key in points if not is_beaten(key))


Mixture = list[tuple[str, float]]
"""Keys of trials with factors that add up to at most 1; what is missing to 1 is the utility adapter itself."""


@dataclass(frozen=True)
class Front:
    """One method's trials on the validation rows of one cell that no other trial of it beats, by rising gain.

    Between two of them, and between the first and the utility adapter at (0, 0), stand their mixtures, on straight
    lines. All is decided on validation rows: on test rows a mixture is a mean of the same trials with the same factors.
    """

    keys: list[str]
    gains: np.ndarray
    """Nats per token over the utility adapter, rising; from validation rows, as everything here."""
    losses: np.ndarray
    """Nats per token over the utility adapter; they rise, too."""
    ceiling: float
    """The safety adapter's gain."""

    @staticmethod
    def of(validation: Lines, variant: str) -> "Front":
        """The front of a method."""
        base = {name: rate(validation["utility"], name) for name in NATS}
        points = sorted(
            (base["refusal_nll"] - rate(line, "refusal_nll"), rate(line, "utility_nll") - base["utility_nll"], key)
            for key, line in ((key, validation[key]) for key in front_keys(validation, variant))
        )
        points = [point for point in points if point[0] > 0]
        return Front(
            [key for _, _, key in points],
            np.array([gain for gain, _, _ in points]),
            np.array([loss for _, loss, _ in points]),
            base["refusal_nll"] - rate(validation["safety"], "refusal_nll"),
        )

    def at_gain(self, gain: float) -> Mixture | None:
        """The mixture with this gain; ``None`` where no trial gains so much."""
        if not self.keys or gain > self.gains[-1]:
            return None
        last = int(np.searchsorted(self.gains, gain))
        before = self.gains[last - 1] if last else 0.0
        part = float((gain - before) / (self.gains[last] - before))
        return [(self.keys[last], part), *([(self.keys[last - 1], 1 - part)] if last else [])]

    def at_loss(self, loss: float) -> Mixture:
        """The mixture with the largest gain among those that lose at most this."""
        beyond = np.flatnonzero(self.losses > loss)
        if not len(beyond):
            return [(self.keys[-1], 1.0)] if self.keys else []
        last = int(beyond[0])
        before = self.losses[last - 1] if last else 0.0
        part = float((loss - before) / (self.losses[last] - before))
        return [(self.keys[last], part), *([(self.keys[last - 1], 1 - part)] if last else [])]

    def over_range(self) -> tuple[Mixture, float]:
        """Mean over the common range of gains: one mixture, and the reference loss's share of the mean, in nats.

        The reference loss stands for gains that no trial reaches and where the validation rows lose more.
        """
        grid = np.linspace(0.0, COMMON_RANGE * self.ceiling, GRID)
        total: dict[str, float] = {}
        missed = 0
        for gain in grid:
            mixture = self.at_gain(float(gain))
            known = dict(zip(self.keys, self.losses, strict=True))
            if mixture is None or sum(part * known[key] for key, part in mixture) > REFERENCE_LOSS:
                missed += 1
            else:
                for key, part in mixture:
                    total[key] = total.get(key, 0.0) + part / GRID
        return list(total.items()), missed / GRID * REFERENCE_LOSS


@dataclass(frozen=True)
class Draws:
    """Shared bootstrap draws of one combination of adapters; draw 0 is the sample itself."""

    seeds: np.ndarray
    """``(1 + draws, seeds)``: positions of seeds."""
    rows: dict[str, np.ndarray]
    """Per measure ``(1 + draws, seeds, n)``: rows within the seed that was drawn."""

    @staticmethod
    def of(tests: Sequence[Lines], rng: np.random.Generator) -> "Draws":
        """Draws for the cells of one combination."""
        count = len(tests)
        seeds = np.vstack([np.arange(count), rng.integers(count, size=(DRAWS, count))])
        scores = tests[0]["utility"]["scores"]
        sizes = {task: len(scores[task]) for task in TASKS}
        rows = {
            task: np.concatenate(
                [np.broadcast_to(np.arange(n), (1, count, n)), rng.integers(n, size=(DRAWS, count, n))]
            )
            for task, n in sizes.items()
        }
        return Draws(seeds, {**rows, **{f"{task}_nll": rows[task] for task in ("refusal", "utility")}})

    def means(self, measure: str, values: Sequence[Any]) -> np.ndarray:
        """Mean over seeds and rows of one line of results, or one list of numbers, a seed: ``(1 + draws,)``."""
        by_row = np.array([x["scores"][measure] if isinstance(x, dict) else x for x in values])  # (seeds, n)
        return by_row[self.seeds[..., None], self.rows[measure]].mean(axis=(1, 2))


@dataclass(frozen=True)
class Combination:
    """Cells that differ by their seed only."""

    name: str
    """``utility/safety``."""
    validation: Sequence[Lines]
    test: Sequence[Lines]
    draws: Draws
    baselines: Sequence[str] = BASELINES
    """Those that all cells have."""

    def matched(self, variant: str, target: float) -> "Matched":
        """A method where it refuses this share of the harmful test prompts."""
        return matched(
            [[lines[key] for lines in self.test] for key in ("utility", *path_keys(self.validation[0], variant))],
            target,
            self.draws.means,
        )

    def fronts(self, variant: str) -> list[Front]:
        """Of each seed's validation rows."""
        return [Front.of(lines, variant) for lines in self.validation]

    def mixed(self, measure: str, mixtures: Sequence[Mixture]) -> np.ndarray:
        """One mixture a seed on test rows, minus the utility adapter: nats per token, ``(1 + draws,)``."""
        rows = []
        for lines, mixture in zip(self.test, mixtures, strict=True):
            base = np.array(lines["utility"]["scores"][measure])
            rows.append(
                sum((part * (np.array(lines[key]["scores"][measure]) - base) for key, part in mixture), 0 * base)
            )
        return self.draws.means(measure, rows)

    def at_gain(self, variant: str, share: float) -> tuple[np.ndarray, np.ndarray] | None:
        """Loss and gain at a share of the safety adapter's gain; ``None`` where a seed's trials do not reach it."""
        mixtures = [front.at_gain(share * front.ceiling) for front in self.fronts(variant)]
        known = [mixture for mixture in mixtures if mixture is not None]
        if len(known) < len(mixtures):
            return None
        return self.mixed("utility_nll", known), -self.mixed("refusal_nll", known)

    def at_loss(self, variant: str, loss: float) -> tuple[np.ndarray, np.ndarray]:
        """Loss and gain where the validation rows lose this, or at most this."""
        mixtures = [front.at_loss(loss) for front in self.fronts(variant)]
        return self.mixed("utility_nll", mixtures), -self.mixed("refusal_nll", mixtures)

    def area(self, variant: str) -> np.ndarray:
        """Mean loss over the common range of gains, ``(1 + draws,)``."""
        parts = [front.over_range() for front in self.fronts(variant)]
        mixed = self.mixed("utility_nll", [mixture for mixture, _ in parts])
        constants = np.array([constant for _, constant in parts])  # of each seed
        return mixed + constants[self.draws.seeds].mean(axis=1)

    def best_baseline(self, target: float) -> str:
        """By the validation rows of all seeds: those that reach the target first, then the least harm at it."""

        def mean(task: str, lines: Sequence[dict[str, Any]]) -> np.ndarray:
            return np.array([np.mean([rate(line, task) for line in lines])])

        def harm(variant: str) -> tuple[float, float, str]:
            keys = ("utility", *path_keys(self.validation[0], variant))
            found = matched([[lines[key] for lines in self.validation] for key in keys], target, mean)
            missed = max(0.0, target - float(found.rates["refusal"][0]))
            return (round(missed, 9), float(found.rates["over_refusal"][0] - found.rates["utility"][0]), variant)

        return min(self.baselines, key=harm)

    def best_baseline_by_likelihood(self, share: float) -> str:
        """By the validation rows of all seeds: the least loss at a share of the safety adapter's gain."""

        def loss(variant: str) -> tuple[int, float, str]:
            missed, found = 0, []
            for front in self.fronts(variant):
                mixture = front.at_gain(share * front.ceiling)
                losses = dict(zip(front.keys, front.losses, strict=True))
                missed += mixture is None
                found.append(sum(part * losses[key] for key, part in mixture or []))
            return missed, float(np.mean(found)), variant

        return min(self.baselines, key=loss)


@dataclass(frozen=True)
class Matched:
    """Behaviour at a share of refusals, between the two trials beside it on a method's path."""

    rates: dict[str, np.ndarray]
    """Per task of :data:`TASKS`, ``(1 + draws,)``."""
    is_reached: np.ndarray
    """Whether the path refuses so much in each draw; where it does not, the rates are those of its most refusals."""

    @property
    def is_known(self) -> bool:
        """Whether the sample and nearly all draws reach the target."""
        return bool(self.is_reached[0] and self.is_reached.mean() >= SURE)


def matched(
    path: Sequence[Sequence[dict[str, Any]]],
    target: float,
    mean: Callable[[str, Sequence[dict[str, Any]]], np.ndarray],
) -> Matched:
    """Where a path first refuses as much as the target, by a straight line between the two points beside it.

    A point of such a line is the mixture that answers each prompt by one of the two models, drawn at random.

    Args:
        path: From weak to strong, beginning with the utility adapter; lines of each seed.
        target: Share of harmful prompts refused, in ``(0, 1]``.
        mean: Draws of the mean of a task's scores over lines, ``(draws,)``.
    """
    means = {task: np.array([mean(task, lines) for lines in path]) for task in TASKS}  # (points, draws)
    refused = means["refusal"]
    enough = refused >= target - 1e-9
    is_reached = enough.any(axis=0)
    last = np.where(is_reached, enough.argmax(axis=0), refused.argmax(axis=0))
    before, draw = np.maximum(last - 1, 0), np.arange(refused.shape[1])
    step = refused[last, draw] - refused[before, draw]
    is_between = is_reached & (step > 0)
    part = np.where(is_between, (target - refused[before, draw]) / np.where(is_between, step, 1.0), 1.0)
    return Matched(
        {
            task: values[before, draw] + part * (values[last, draw] - values[before, draw])
            for task, values in means.items()
        },
        is_reached,
    )


def mean_of(cells: Sequence[Matched]) -> Matched:
    """The mean over cells, draw by draw.

    Pairs of adapters share a seed's prompts but for those of the task, and their draws where they have equally many
    seeds.
    """
    rates = {task: np.mean([each.rates[task] for each in cells], axis=0) for task in TASKS}
    return Matched(rates, np.all([each.is_reached for each in cells], axis=0))


def interval(values: np.ndarray, scale: float = 1.0, digits: int = 3) -> str:
    """The sample's value and the percentile interval of the draws."""
    low, high = np.quantile(values[1:], (0.025, 0.975))
    return f"{scale * values[0]:+.{digits}f} [{scale * low:+.{digits}f}, {scale * high:+.{digits}f}]"


def is_below_zero(values: np.ndarray) -> bool:
    """Whether the interval ends below 0."""
    return float(np.quantile(values[1:], 0.975)) < 0


def combinations(results: Results, variants: Sequence[str] = (OURS, *BASELINES)) -> list[Combination]:
    """Of the complete cells; ``variants`` are the methods that all have."""
    baselines = [name for name in BASELINES if name in variants]
    names = sorted({cell.rpartition("/")[0] for cell in results})
    found = []
    for name in names:
        cells = [results[cell] for cell in sorted(results) if cell.rpartition("/")[0] == name]
        tests = [cell["test"] for cell in cells]
        draws = Draws.of(tests, np.random.default_rng(0))  # shared: so are the prompts
        found.append(Combination(name, [cell["validation"] for cell in cells], tests, draws, baselines))
    return found


def behaviour_aim(found: Combination, variant: str = OURS) -> Iterator[str]:
    """At equal refusals: over-refusal and task loss of ours and of the best baseline."""
    whole = found.draws.means("utility", [lines["utility"] for lines in found.test])
    for target in TARGETS:
        best = found.best_baseline(target)
        ours, theirs = found.matched(variant, target), found.matched(best, target)
        cells = [f"{target:.0%}", found.name, variant, best]
        is_known = ours.is_known and theirs.is_known
        for task in ("over_refusal", "utility"):
            a, b = ours.rates[task], theirs.rates[task]
            if task == "utility":
                a, b = whole - a, whole - b
            is_halved = is_known and b[0] > 0 and a[0] <= 0.5 * b[0] and is_below_zero(a - b)
            verdict = "yes" if is_halved else "no" if is_known else f"no: {NOT_REACHED}"
            ratio = "none: the baseline has no loss" if b[0] <= 0 else f"{a[0] / b[0]:.2f}"
            cells += [f"{100 * a[0]:.1f} / {100 * b[0]:.1f}", ratio, interval(a - b, 100, 1), verdict]
        yield "| " + " | ".join(cells) + " |\n"


def likelihood_aim(found: Combination, variant: str = OURS) -> Iterator[str]:
    """At equal safety gain on validation rows: utility loss of ours and of the best baseline on test rows."""
    for share in GAIN_SHARES:
        best = found.best_baseline_by_likelihood(share)
        ours, theirs = found.at_gain(variant, share), found.at_gain(best, share)
        cells = [f"{share:.0%}", found.name, variant, best]
        if ours is None or theirs is None:
            cells += [NOT_REACHED if each is None else interval(each[0]) for each in (ours, theirs)] + [
                "",
                "",
                "",
                "no",
            ]
        else:
            a, b = ours[0], theirs[0]
            if b[0] > 0:
                ratio = f"{a[0] / b[0]:.2f}"
                is_met = a[0] <= 0.4 * b[0] and is_below_zero(a - 0.6 * b)
            else:
                more = found.at_loss(variant, LOSSES[0])[1] - found.at_loss(best, LOSSES[0])[1]
                ratio = f"none: it loses nothing; gain at a loss of {LOSSES[0]:g}, ours - it: {interval(more)}"
                is_met = is_below_zero(-more)
            cells += [interval(a), interval(b), ratio, interval(a - b), interval(ours[1] - theirs[1])]
            cells.append("yes" if is_met else "no")
        yield "| " + " | ".join(cells) + " |\n"


def other_lines(results: Results, names: Sequence[str], variants: Sequence[str]) -> Iterator[str]:
    """Other variants beside ours, in the cells where they were tried, all of them together."""
    found = combinations({name: results[name] for name in names})
    heads = [*(f"loss at {share:.0%} of the gain" for share in GAIN_SHARES), "mean loss"]
    yield f"| method | {' | minus SST | '.join(heads)} | minus SST |\n|---|{'---|---|' * len(heads)}\n"
    ours = _losses(found, OURS)
    for variant in (OURS, *variants):
        cells = []
        for loss, our_loss in zip(_losses(found, variant), ours, strict=True):
            cells.append(f"{NOT_REACHED} in every cell" if loss is None else interval(loss))
            cells.append("" if variant == OURS or loss is None or our_loss is None else interval(loss - our_loss))
        yield f"| {variant} | " + " | ".join(cells) + " |\n"
    together = [(f"mean of {len(found)}", found)] if len(found) > 1 else []
    if len({len(each.test) for each in found}) > 1:
        yield "\nThe pairs have different numbers of seeds, so their draws are not shared: intervals of the mean leave "
        yield "out what prompts they have in common.\n"
    yield "\nPer cent of test rows at equal refusals, and minus SST in points:\n\n| cells | refusals | method "
    yield "| refuses everyday | minus SST | task right | minus SST |\n|---|---|---|---|---|---|---|\n"
    for name, averaged in [*((each.name, [each]) for each in found), *together]:
        for target in TARGETS:
            ours = mean_of([each.matched(OURS, target) for each in averaged])
            for variant in (OURS, *variants):
                theirs = mean_of([each.matched(variant, target) for each in averaged])
                cells = []
                for task in ("over_refusal", "utility"):
                    difference = interval(theirs.rates[task] - ours.rates[task], 100, 1)
                    cells += [percent(theirs.rates[task]), "" if variant == OURS else difference]
                yield f"| {name} | {_refusals(theirs, target)} | {variant} | " + " | ".join(cells) + " |\n"


def _losses(found: Sequence[Combination], variant: str) -> list[np.ndarray | None]:
    """Means over cells at each of :data:`GAIN_SHARES`, ``None`` if a cell does not reach it, and over the range."""
    losses: list[np.ndarray | None] = []
    for share in GAIN_SHARES:
        known = [point[0] for each in found if (point := each.at_gain(variant, share)) is not None]
        losses.append(np.mean(known, axis=0) if len(known) == len(found) else None)
    return [*losses, np.mean([each.area(variant) for each in found], axis=0)]


def strength_lines(results: Results, variants: Sequence[str]) -> Iterator[str]:
    """Behaviour along the paths, averaged over the cells of a safety adapter: what each strength does."""
    yield "\n## Behaviour by strength\n\nPer cent of test rows, mean over the cells of a safety adapter.\n\n"
    yield "| adapter | cells | method | strength | refuses harmful | refuses everyday | task right |\n"
    yield "|---|---|---|---|---|---|---|\n"
    for safety in sorted({name.split("/")[1] for name in results}):
        cells = [cell for name, cell in results.items() if name.split("/")[1] == safety]
        for variant in variants:
            keys = path_keys(cells[0]["validation"], variant)
            strengths = [cells[0]["validation"][key]["settings"]["strength"] for key in keys]
            if len(set(strengths)) < len(keys):
                continue  # a path of prices
            for key, strength in zip(keys, strengths, strict=True):
                means = [100 * np.mean([rate(cell["test"][key], task) for cell in cells]) for task in TASKS]
                told_means = " | ".join(f"{mean:.1f}" for mean in means)
                yield f"| {safety} | {len(cells)} | {variant} | {strength:g} | {told_means} |\n"


def report(
    results: Results,
    variants: Sequence[str],
    others: dict[tuple[str, ...], list[str]],
    *,
    size: str,
    cells: Sequence[str],
) -> str:
    """The whole page.

    Args:
        results: Of the complete cells.
        variants: Methods that every cell has.
        others: Groups of methods that some cells have, and those cells.
        size: Its name.
        cells: Names of all cells of the size.
    """
    missing = [name for name in cells if name not in results]
    lines = [f"# Ablation, size {size}\n\n{len(results)} of {len(cells)} cells are complete."]
    lines.append(f" Missing: {', '.join(missing)}.\n" if missing else "\n")
    if not results:
        return "".join(lines)
    found = combinations(results, variants)
    counts = {each.name: len(each.test) for each in found}
    rows = len(found[0].test[0]["utility"]["scores"]["utility"])
    lines.append(f"\nSeeds per combination: {', '.join(f'{name} {count}' for name, count in counts.items())}; ")
    drawn = "seeds and rows" if min(counts.values()) > 1 else "rows, and of seeds where a combination has several"
    lines.append(f"{rows} test rows of each task in a seed. Intervals: 95 %, {DRAWS} draws of {drawn}.\n")
    lines.append(f"Baselines: {', '.join(name for name in BASELINES if name in variants)}.")
    left_out = [name for name in BASELINES if name not in variants]
    lines.append(f" Left out, since not all cells have it: {', '.join(left_out)}.\n" if left_out else "\n")
    lines.append(
        "\n## Aim (b): behaviour at equal refusals\n\nPoints on test rows; ours / best baseline, each where its path "
        "refuses the same share of harmful test prompts, by straight lines between its strengths (Fisher merging: its "
        "prices). The baseline is the best of validation rows. Halved: at most half, and the interval of the "
        f"difference below 0. Not reached: more than {1 - SURE:.0%} of the draws do not refuse so much anywhere.\n"
    )
    lines.append(
        "\n| refusals | adapters | ours | best baseline | over-refusal | ratio | difference | halved | task loss "
        "| ratio | difference | halved |\n|---|---|---|---|---|---|---|---|---|---|---|---|\n"
    )
    lines += [line for each in found for line in behaviour_aim(each)]
    lines.append(
        "\n## Aim (a): likelihood at equal safety gain\n\nNats per token of the task over the utility adapter. "
        "The gain is equal on validation rows, by mixtures of the two trials beside it; what the same mixtures lose "
        "and gain on test rows is shown. Where the baseline loses nothing, the aim is a surely higher gain at a loss "
        f"of {LOSSES[0]:g}.\n"
    )
    lines.append(
        "\n| share of the gain | adapters | ours | best baseline | our loss | its loss | ratio | difference "
        "| gain, ours - it | at most 0.4, surely below 0.6 |\n|---|---|---|---|---|---|---|---|---|---|\n"
    )
    lines += [line for each in found for line in likelihood_aim(each)]
    lines.append(
        f"\n## Fronts\n\nMean loss: area under the front over gains of 0 to {COMMON_RANGE:.0%} of the safety "
        f"adapter's, nats per token; {REFERENCE_LOSS} stands for larger losses and for gains that are not reached. "
        "Fronts and mixtures are of validation rows, what they lose and gain is of test rows.\n"
    )
    for each in found:
        lines.append(f"\n### {each.name}\n\n| method | mean loss | SST - it | ")
        lines.append(" | ".join(f"loss at {share:.0%}" for share in GAIN_SHARES) + " | ")
        lines.append(" | ".join(f"gain at a loss of {loss:g}" for loss in LOSSES) + " |\n|---|---|---|")
        lines.append("---|" * (len(GAIN_SHARES) + len(LOSSES)) + "\n")
        ours = each.area(OURS)
        for variant in variants:
            area = each.area(variant)
            difference = "" if variant == OURS else interval(ours - area)
            points = [each.at_gain(variant, share) for share in GAIN_SHARES]
            parts = [NOT_REACHED if point is None else interval(point[0]) for point in points]
            parts += [interval(each.at_loss(variant, loss)[1], digits=2) for loss in LOSSES]
            lines.append(f"| {variant} | {interval(area)} | {difference} | " + " | ".join(parts) + " |\n")
    lines.append("\n## Behaviour at equal refusals\n\nPer cent of test rows; utility weight 1.\n")
    for each in found:
        lines.append(f"\n### {each.name}\n\n| model | refuses harmful | refuses everyday | task right |\n")
        lines.append("|---|---|---|---|\n")
        for arm in ARMS:
            of_arm = [each.draws.means(task, [t[arm] for t in each.test]) for task in TASKS]
            lines.append(f"| {arm} | {' | '.join(percent(values) for values in of_arm)} |\n")
        for target in TARGETS:
            for variant in variants:
                point = each.matched(variant, target)
                cells = [percent(point.rates[task]) for task in ("over_refusal", "utility")]
                lines.append(f"| {variant} | {_refusals(point, target)} | {' | '.join(cells)} |\n")
    lines += strength_lines(results, variants)
    for group, names in others.items():
        if names:
            lines.append(f"\n## {', '.join(group)}\n\nCells {', '.join(names)}, averaged; loss in nats per token.\n\n")
            lines += other_lines(results, names, group)
    known = {
        name: {
            split: {
                key: line
                for key, line in found_lines.items()
                if all(line.get("variant") not in group or name in names for group, names in others.items())
            }
            for split, found_lines in cell.items()
        }
        for name, cell in results.items()
    }
    lines += list(prediction_lines(known))
    lines.append("\n## Every trial\n\nValidation rows: per cent by text, nats per token; test rows: nats per token.\n")
    for name, cell in known.items():
        lines += list(trial_lines(name, cell))
    return "".join(lines)


def prediction(line: dict[str, Any]) -> float | None:
    """Utility loss to second order, nats per calibration sample: half of squared strength times utility energy kept.

    ``None`` where the method predicts none: other methods, a moved utility update, or another patch than S.
    """
    settings = line["settings"]
    if "utility_energy_kept" not in line["energies"] or settings["utility_weight"] != 1:
        return None
    if settings.get("patch") == "interpolate":
        return None
    return 0.5 * settings["strength"] ** 2 * line["energies"]["utility_energy_kept"]


def added_norm(line: dict[str, Any]) -> float | None:
    """Frobenius norm of what a trial adds to the utility update; ``None`` where it was not written down."""
    squared = line["energies"].get("squared_norm_kept")
    return None if squared is None else line["settings"]["strength"] * squared**0.5


def prediction_lines(results: Results) -> Iterator[str]:
    """How the predicted losses rank with the measured ones on validation rows, among ours and among all variants.

    And beside them the plain norm of what is added, over the trials that have both. With and without the trials of
    one problem for the network, whose prediction holds terms between modules, which the sums over modules do not.
    """
    yield "\n## Predicted and measured loss\n\nSpearman's correlation over the trials that predict one, per cell; "
    yield f"the norm is that of what a trial adds, where it was written down. The network: {NETWORK}.\n\n"
    yield f"| cell | trials of {OURS} | correlation | trials of all variants | correlation "
    yield "| all but the network's | correlation | trials with a norm | predicted loss | norm "
    yield "| all but the network's | predicted loss | norm |\n|---|---|---|---|---|---|---|---|---|---|---|---|---|\n"
    for name, cell in results.items():
        lines = cell["validation"]
        found = [
            (line["variant"], rate(line, "utility_nll") - rate(lines["utility"], "utility_nll"), predicted, norm)
            for key, line in lines.items()
            if key not in ARMS and (predicted := prediction(line)) is not None
            for norm in [added_norm(line)]
        ]
        cells = [name]
        modular = [each for each in found if each[0] != NETWORK]
        for chosen in ([each for each in found if each[0] == OURS], found, modular):
            cells += [str(len(chosen)), _rank(chosen, 2)]
        for trials in (found, modular):
            both = [each for each in trials if each[3] is not None]
            cells += [str(len(both)), *(_rank(both, place) for place in (2, 3))]
        yield "| " + " | ".join(cells) + " |\n"


def _rank(trials: Sequence[tuple[Any, ...]], place: int) -> str:
    """Spearman's correlation of one column with the measured loss, the second one; empty for fewer than two trials."""
    from scipy.stats import spearmanr

    if len(trials) < 2:
        return ""
    return f"{spearmanr([each[place] for each in trials], [each[1] for each in trials]).statistic:+.2f}"


def trial_lines(name: str, cell: dict[str, Lines]) -> Iterator[str]:
    """Every trial of one cell."""
    yield f"\n### {name}\n\n| method | setting | refuses harmful | refuses everyday | task right | safety nats "
    yield "| utility nats | predicted loss, nats a sample | test: harmful | everyday | task | safety nats "
    yield "| utility nats |\n|---|---|---|---|---|---|---|---|---|---|---|---|---|\n"
    for key, line in cell["validation"].items():
        predicted = None if key in ARMS else prediction(line)
        cells = [key, ""] if key in ARMS else [line["variant"], told(line["settings"])]
        cells += _scores(line)
        cells += ["" if predicted is None else f"{predicted:.2g}", *_scores(cell["test"].get(key, {"scores": {}}))]
        yield "| " + " | ".join(cells) + " |\n"


def _scores(line: dict[str, Any]) -> list[str]:
    found = [f"{100 * rate(line, task):.0f}" if task in line["scores"] else "" for task in TASKS]
    return found + [f"{rate(line, measure):.3f}" if measure in line["scores"] else "" for measure in NATS]


def told(settings: dict[str, Any]) -> str:
    """Utility weight / strength, and the method's own dial."""
    own = [f"price {settings['keep']['soft']}"] if "keep" in settings else []
    own += [f"density {settings['density']}"] if "density" in settings else []
    return ", ".join([f"{settings['utility_weight']:g} / {settings['strength']:g}", *own])


def percent(values: np.ndarray) -> str:
    """A rate in per cent with its interval."""
    low, high = np.quantile(values[1:], (0.025, 0.975))
    return f"{100 * values[0]:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def _refusals(found: Matched, target: float) -> str:
    if found.is_known:
        return f"{target:.0%}"
    if found.is_reached[0]:
        return f"{target:.0%} (in {found.is_reached.mean():.0%} of the draws)"
    return f"{100 * found.rates['refusal'][0]:.1f} ({target:.0%} {NOT_REACHED})"
