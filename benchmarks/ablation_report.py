"""What the ablation's results say: choices made on validation rows, numbers of test rows, intervals over both.

Intervals are 95 % percentile intervals of a paired bootstrap of two stages: seeds (adapters and rows) are drawn with
replacement, and rows within each drawn seed; all methods share the draws. With three seeds they are rough.
"""

from collections.abc import Iterator, Sequence
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
BASELINES = ("Fisher merging", "task arithmetic", "TIES", "DARE")
GAIN_SHARES = (0.5, 0.8)
"""Matched safety gains, as shares of the safety adapter's own gain in nats."""
LOSSES = (0.01, 0.05)
"""Matched utility losses, nats per token."""
COMMON_RANGE = 0.8
"""The area under a front is taken over safety gains from 0 to this share of the safety adapter's gain."""
REFERENCE_LOSS = 0.5
"""Utility loss, nats per token, that stands for all larger ones and for gains that no trial of a method reaches."""
EQUAL = 0.05
"""Two rates of refusal count as equal where the first is lower by no more than this, and not surely lower."""
DRAWS = 1000


def rate(line: dict[str, Any], task: str) -> float:
    """Mean score."""
    return float(np.mean(line["scores"][task]))


def chosen(validation: Lines, variant: str, target: float) -> tuple[dict[str, Any], bool]:
    """The trial of a method for a target, and whether it reached it on validation rows."""
    own = [line for line in validation.values() if line.get("variant") == variant]
    most = max(rate(line, "refusal") for line in own)
    reaching = [line for line in own if rate(line, "refusal") >= min(target, most)]
    least_harm = min(reaching, key=lambda line: (rate(line, "over_refusal") - rate(line, "utility"), line["key"]))
    return least_harm, most >= target


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


def loss_at(gain: float, gains: np.ndarray, losses: np.ndarray) -> float:
    """Utility loss of a front at a safety gain: straight lines between its points and the utility adapter, (0, 0).

    A point that another one beats in both is passed over. NaN where no point gains so much.
    """
    x, y = _envelope(gains, losses)
    return float(np.interp(gain, x, y)) if gain <= x[-1] else float("nan")


def gain_at(loss: float, gains: np.ndarray, losses: np.ndarray) -> float:
    """Largest safety gain on the front's lines at a utility loss of at most this."""
    x, y = _envelope(gains, losses)
    beyond = np.flatnonzero(y > loss)
    if not len(beyond):
        return float(x[-1])
    last = beyond[0]
    return float(x[last - 1] + (x[last] - x[last - 1]) * (loss - y[last - 1]) / (y[last] - y[last - 1]))


def mean_loss(gains: np.ndarray, losses: np.ndarray, ceiling: float) -> float:
    """Area under the front over the common range, divided by its width: nats per token."""
    x, y = _envelope(gains, losses)
    grid = np.linspace(0.0, COMMON_RANGE * ceiling, 81)
    found = np.interp(grid, x, y)
    found[grid > x[-1]] = REFERENCE_LOSS
    return float(np.minimum(found, REFERENCE_LOSS).mean())


def _envelope(gains: np.ndarray, losses: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Points that no other point beats, the utility adapter before them: gains rise, and losses after the first."""
    order = np.lexsort((losses, gains))
    x, y = gains[order], losses[order]
    best_beyond = np.minimum.accumulate(y[::-1])[::-1]  # the least loss among those that gain at least so much
    kept = (x > 0) & (y <= best_beyond)
    return np.r_[0.0, x[kept]], np.r_[0.0, y[kept]]


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

    def means(self, measure: str, lines: Sequence[dict[str, Any]]) -> np.ndarray:
        """Mean of one line a seed over seeds and rows, ``(1 + draws,)``."""
        return self.by_seed(measure, lines).mean(axis=1)

    def by_seed(self, measure: str, lines: Sequence[dict[str, Any]]) -> np.ndarray:
        """Means over the rows, ``(1 + draws, seeds)``: column ``j`` is of the seed that was drawn at place ``j``."""
        values = np.array([line["scores"][measure] for line in lines])  # (seeds, n)
        return values[self.seeds[..., None], self.rows[measure]].mean(axis=2)


@dataclass(frozen=True)
class Combination:
    """Cells that differ by their seed only."""

    name: str
    """``utility/safety``."""
    validation: Sequence[Lines]
    test: Sequence[Lines]
    draws: Draws

    def picked(self, variant: str, target: float) -> list[dict[str, Any]]:
        """Test lines of the trial that each seed's validation rows chose."""
        return [t[chosen(v, variant, target)[0]["key"]] for v, t in zip(self.validation, self.test, strict=True)]

    def reached(self, variant: str, target: float) -> int:
        """In how many seeds the target was reached on validation rows."""
        return sum(chosen(v, variant, target)[1] for v in self.validation)

    def front(self, variant: str) -> "Front":
        """Points on test rows of the trials on each seed's validation front."""
        means: dict[str, list[np.ndarray]] = {name: [] for name in NATS}
        arms: dict[str, np.ndarray] = {}
        for name in NATS:
            arms[name] = self.draws.by_seed(name, [t["utility"] for t in self.test])
        safety = self.draws.by_seed("refusal_nll", [t["safety"] for t in self.test])
        keys = [front_keys(v, variant) for v in self.validation]
        most = max(map(len, keys))
        for place in range(most):  # a shorter front repeats its last point
            lines = [t[k[min(place, len(k) - 1)]] for t, k in zip(self.test, keys, strict=True)]
            for name in NATS:
                means[name].append(self.draws.by_seed(name, lines))
        return Front(
            gains=arms["refusal_nll"] - np.array(means["refusal_nll"]),
            losses=np.array(means["utility_nll"]) - arms["utility_nll"],
            ceiling=arms["refusal_nll"] - safety,
        )

    def best_baseline(self, target: float) -> str:
        """By the validation rows of all seeds: the least harm among the baselines that come closest to the target."""

        def harm(variant: str) -> tuple[float, float, str]:
            lines = [chosen(v, variant, target)[0] for v in self.validation]
            missed = max(0.0, target - float(np.mean([rate(line, "refusal") for line in lines])))
            return missed, float(np.mean([rate(x, "over_refusal") - rate(x, "utility") for x in lines])), variant

        return min(BASELINES, key=harm)

    def best_baseline_by_likelihood(self, share: float) -> str:
        """By the validation rows of all seeds: the least loss at a share of the safety adapter's gain."""

        def loss(variant: str) -> float:
            found = []
            for lines in self.validation:
                own = [line for line in lines.values() if line.get("variant") == variant]
                gains = np.array([rate(lines["utility"], "refusal_nll") - rate(x, "refusal_nll") for x in own])
                losses = np.array([rate(x, "utility_nll") - rate(lines["utility"], "utility_nll") for x in own])
                ceiling = rate(lines["utility"], "refusal_nll") - rate(lines["safety"], "refusal_nll")
                found.append(np.nan_to_num(loss_at(share * ceiling, gains, losses), nan=np.inf))
            return float(np.mean(found))

        return min(BASELINES, key=lambda variant: (loss(variant), variant))


@dataclass(frozen=True)
class Front:
    """A method's points in every draw and seed."""

    gains: np.ndarray
    """Nats per token over the utility adapter, ``(points, 1 + draws, seeds)``."""
    losses: np.ndarray
    """The same shape."""
    ceiling: np.ndarray
    """The safety adapter's gain, ``(1 + draws, seeds)``."""

    def over_draws(self, measure: Any) -> np.ndarray:
        """``measure(gains, losses, ceiling)`` in every draw and seed, averaged over the seeds: ``(1 + draws,)``."""
        return np.array(
            [
                np.mean([measure(self.gains[:, d, j], self.losses[:, d, j], c) for j, c in enumerate(ceilings)])
                for d, ceilings in enumerate(self.ceiling)
            ]
        )

    def loss(self, share: float) -> np.ndarray:
        """At a share of the safety adapter's gain; NaN in draws where a seed does not reach it."""
        return self.over_draws(lambda gains, losses, ceiling: loss_at(share * ceiling, gains, losses))

    def gain(self, loss: float) -> np.ndarray:
        """Share of the safety adapter's gain at a utility loss."""
        return self.over_draws(lambda gains, losses, ceiling: gain_at(loss, gains, losses) / ceiling)

    def area(self) -> np.ndarray:
        """Mean loss over the common range."""
        return self.over_draws(mean_loss)


def interval(values: np.ndarray, scale: float = 1.0, digits: int = 3) -> str:
    """The sample's value and the percentile interval of the draws, or why there is none."""
    if np.isnan(values[0]):
        return "not reached"
    if np.isnan(values).mean() > 0.025:
        return f"{scale * values[0]:+.{digits}f} (not reached in {np.isnan(values[1:]).mean():.0%} of the draws)"
    low, high = np.nanquantile(values[1:], (0.025, 0.975))
    return f"{scale * values[0]:+.{digits}f} [{scale * low:+.{digits}f}, {scale * high:+.{digits}f}]"


def is_below_zero(values: np.ndarray) -> bool:
    """Whether the interval ends below 0 and no draw is undefined."""
    return not np.isnan(values).any() and float(np.quantile(values[1:], 0.975)) < 0


def combinations(results: Results) -> list[Combination]:
    """Of the complete cells."""
    names = sorted({cell.rpartition("/")[0] for cell in results})
    found = []
    for number, name in enumerate(names):
        cells = [results[cell] for cell in sorted(results) if cell.rpartition("/")[0] == name]
        tests = [cell["test"] for cell in cells]
        draws = Draws.of(tests, np.random.default_rng(number))
        found.append(Combination(name, [cell["validation"] for cell in cells], tests, draws))
    return found


def behaviour_aim(found: Combination) -> Iterator[str]:
    """At equal refusals: over-refusal and task loss of ours and of the best baseline."""
    for target in TARGETS:
        best = found.best_baseline(target)
        ours, theirs = found.picked(OURS, target), found.picked(best, target)
        utility = [t["utility"] for t in found.test]
        draws = found.draws
        refusals = draws.means("refusal", ours) - draws.means("refusal", theirs)
        cells = [f"{target:.0%}", found.name, best, interval(refusals, 100, 1)]
        for task in ("over_refusal", "utility"):
            a, b = draws.means(task, ours), draws.means(task, theirs)
            if task == "utility":
                whole = draws.means(task, utility)
                a, b = whole - a, whole - b
            ratio = f"{a[0] / b[0]:.2f}" if b[0] > 0 else "none: the baseline has no loss"
            is_met = b[0] > 0 and a[0] <= 0.5 * b[0] and is_below_zero(a - b)
            verdict = "yes" if is_met else "no"
            if refusals[0] < -EQUAL or is_below_zero(refusals):
                verdict = "no: refuses less"
            cells += [f"{100 * a[0]:.1f} / {100 * b[0]:.1f}", ratio, interval(a - b, 100, 1), verdict]
        yield "| " + " | ".join(cells) + " |\n"


def likelihood_aim(found: Combination) -> Iterator[str]:
    """At equal safety gain: utility loss of ours and of the best baseline."""
    for share in GAIN_SHARES:
        best = found.best_baseline_by_likelihood(share)
        a, b = found.front(OURS).loss(share), found.front(best).loss(share)
        ratio = f"{a[0] / b[0]:.2f}" if b[0] > 0 else "none: the baseline has no loss"
        is_met = b[0] > 0 and a[0] <= 0.4 * b[0] and is_below_zero(a - 0.6 * b)
        yield (
            f"| {share:.0%} | {found.name} | {best} | {interval(a)} | {interval(b)} | {ratio} | {interval(a - b)} | "
            f"{'yes' if is_met else 'no'} |\n"
        )


def structure_lines(results: Results, names: Sequence[str], variants: Sequence[str]) -> Iterator[str]:
    """The other structures beside ours, in the cells where they were tried, all of them together."""
    yield "| method | " + " | ".join(f"loss at {share:.0%} of the gain" for share in GAIN_SHARES)
    yield " | mean loss | refuses harmful | refuses everyday | task right |\n|---|---|---|---|---|---|---|\n"
    found = combinations({name: results[name] for name in names})
    for variant in (OURS, *variants):
        fronts = [each.front(variant) for each in found]
        cells = [interval(np.mean([front.loss(share) for front in fronts], axis=0)) for share in GAIN_SHARES]
        cells.append(interval(np.mean([front.area() for front in fronts], axis=0)))
        for task in TASKS:
            values = [each.draws.means(task, each.picked(variant, 0.8)) for each in found]
            cells.append(interval(np.mean(values, axis=0), 100, 1))
        yield f"| {variant} | " + " | ".join(cells) + " |\n"


def report(
    results: Results,
    variants: Sequence[str],
    structures: Sequence[str],
    structure_cells: Sequence[str],
    *,
    size: str,
    cells: Sequence[str],
) -> str:
    """The whole page.

    Args:
        results: Of the complete cells.
        variants: Methods that every cell has.
        structures: Methods that some cells have.
        structure_cells: Those cells.
        size: Its name.
        cells: Names of all cells of the size.
    """
    missing = [name for name in cells if name not in results]
    lines = [f"# Ablation, size {size}\n\n{len(results)} of {len(cells)} cells are complete."]
    lines.append(f" Missing: {', '.join(missing)}.\n" if missing else "\n")
    if not results:
        return "".join(lines)
    found = combinations(results)
    counts = {each.name: len(each.test) for each in found}
    rows = len(found[0].test[0]["utility"]["scores"]["utility"])
    lines.append(f"\nSeeds per combination: {', '.join(f'{name} {count}' for name, count in counts.items())}; ")
    lines.append(f"{rows} test rows of each task in a seed. Intervals: 95 %, {DRAWS} draws of seeds and rows.\n")
    lines.append(
        "\n## Aim (b): behaviour at equal refusals\n\nPoints; SST / best baseline, chosen on validation rows.\n"
    )
    lines.append(
        "\n| target | adapters | best baseline | refusals, SST - it | over-refusal | ratio | difference | halved "
        "| task loss | ratio | difference | halved |\n|---|---|---|---|---|---|---|---|---|---|---|---|\n"
    )
    lines += [line for each in found for line in behaviour_aim(each)]
    lines.append(
        "\n## Aim (a): likelihood at equal safety gain\n\nNats per token of the task over the utility adapter.\n"
    )
    lines.append(
        "\n| share of the gain | adapters | best baseline | SST | best baseline | ratio | difference "
        "| at most 0.4, surely below 0.6 |\n|---|---|---|---|---|---|---|---|\n"
    )
    lines += [line for each in found for line in likelihood_aim(each)]
    lines.append(
        f"\n## Fronts\n\nMean loss: area under the front over gains of 0 to {COMMON_RANGE:.0%} of the safety "
        f"adapter's, nats per token; {REFERENCE_LOSS} stands for larger losses and for gains that are not reached.\n"
    )
    for each in found:
        lines.append(f"\n### {each.name}\n\n| method | mean loss | SST - it | ")
        lines.append(" | ".join(f"loss at {share:.0%}" for share in GAIN_SHARES) + " | ")
        lines.append(" | ".join(f"gain share at a loss of {loss:g}" for loss in LOSSES) + " |\n|---|---|---|")
        lines.append("---|" * (len(GAIN_SHARES) + len(LOSSES)) + "\n")
        ours = each.front(OURS).area()
        for variant in variants:
            front = each.front(variant)
            area = front.area()
            difference = "" if variant == OURS else interval(ours - area)
            parts = [interval(front.loss(share)) for share in GAIN_SHARES]
            parts += [interval(front.gain(loss), digits=2) for loss in LOSSES]
            lines.append(f"| {variant} | {interval(area)} | {difference} | " + " | ".join(parts) + " |\n")
    lines.append("\n## Behaviour on test rows\n\nPer cent; trials chosen on each seed's validation rows.\n")
    for each in found:
        lines.append(f"\n### {each.name}\n\n| model | target reached on validation rows, of {len(each.test)} seeds | ")
        lines.append("settings | refuses harmful | refuses everyday | task right |\n|---|---|---|---|---|---|\n")
        for arm in ARMS:
            lines.append(f"| {arm} | | | {_rates(each, [t[arm] for t in each.test])} |\n")
        for target in TARGETS:
            for variant in variants:
                picked = each.picked(variant, target)
                settings = "; ".join(dict.fromkeys(told(line["settings"]) for line in picked))
                lines.append(f"| {variant} ({target:.0%}) | {each.reached(variant, target)} | {settings} | ")
                lines.append(f"{_rates(each, picked)} |\n")
    if structure_cells:
        lines.append(f"\n## Structures of the Fisher matrices\n\nCells {', '.join(structure_cells)}, averaged; ")
        lines.append("loss in nats per token; behaviour at the 80 % settings, per cent.\n\n")
        lines += structure_lines(results, structure_cells, structures)
    lines += list(prediction_lines(results))
    lines.append("\n## Every trial\n\nValidation rows: per cent by text, nats per token; test rows: nats per token.\n")
    for name, cell in results.items():
        lines += list(trial_lines(name, cell))
    return "".join(lines)


def prediction(line: dict[str, Any]) -> float | None:
    """Utility loss to second order, nats per calibration sample: half of squared strength times utility energy kept.

    ``None`` where the method predicts none: other methods, a moved utility update, terms between modules (global
    scope), or another patch than S.
    """
    settings = line["settings"]
    if "utility_energy_kept" not in line["energies"] or settings["utility_weight"] != 1:
        return None
    if settings.get("scope") == "global" or settings.get("patch") == "interpolate":
        return None
    return 0.5 * settings["strength"] ** 2 * line["energies"]["utility_energy_kept"]


def prediction_lines(results: Results) -> Iterator[str]:
    """How the predicted losses rank with the measured ones on validation rows."""
    from scipy.stats import spearmanr

    yield "\n## Predicted and measured loss\n\nSpearman's correlation over the trials that predict one, per cell:\n\n"
    yield "| cell | trials | correlation |\n|---|---|---|\n"
    for name, cell in results.items():
        lines = cell["validation"]
        pairs = [
            (predicted, rate(line, "utility_nll") - rate(lines["utility"], "utility_nll"))
            for key, line in lines.items()
            if key not in ARMS and (predicted := prediction(line)) is not None
        ]
        yield f"| {name} | {len(pairs)} | {spearmanr(*zip(*pairs, strict=True)).statistic:+.2f} |\n"


def trial_lines(name: str, cell: dict[str, Lines]) -> Iterator[str]:
    """Every trial of one cell."""
    yield f"\n### {name}\n\n| method | setting | refuses harmful | refuses everyday | task right | safety nats "
    yield "| utility nats | predicted loss, nats a sample | safety nats, test | utility nats, test |\n"
    yield "|---|---|---|---|---|---|---|---|---|---|\n"
    for key, line in cell["validation"].items():
        rates = " | ".join(f"{100 * rate(line, task):.0f}" for task in TASKS)
        nats = " | ".join(f"{rate(line, measure):.3f}" for measure in NATS)
        on_test = cell["test"].get(key, {"scores": {}})
        more = " | ".join(f"{rate(on_test, m):.3f}" if m in on_test["scores"] else "" for m in NATS)
        predicted = None if key in ARMS else prediction(line)
        shown = "" if predicted is None else f"{predicted:.2g}"
        label = key if key in ARMS else line["variant"]
        yield f"| {label} | {'' if key in ARMS else told(line['settings'])} | {rates} | {nats} | {shown} | {more} |\n"


def told(settings: dict[str, Any]) -> str:
    """Utility weight / strength, and the method's own dial."""
    own = [f"price {settings['keep']['soft']}"] if "keep" in settings else []
    own += [f"density {settings['density']}"] if "density" in settings else []
    return ", ".join([f"{settings['utility_weight']:g} / {settings['strength']:g}", *own])


def _rates(found: Combination, lines: Sequence[dict[str, Any]]) -> str:
    cells = []
    for task in TASKS:
        values = found.draws.means(task, lines)
        low, high = np.quantile(values[1:], (0.025, 0.975))
        cells.append(f"{100 * values[0]:.1f} [{100 * low:.1f}, {100 * high:.1f}]")
    return " | ".join(cells)
