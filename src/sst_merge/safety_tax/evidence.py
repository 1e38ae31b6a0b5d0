"""What a Safety Tax is judged by: the paired scores of a metric, and the evidence that the gates need."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from sst_merge.errors import DataError
from sst_merge.estimates import Difference

Status = Literal["pass", "fail", "unknown"]
Number = float | int


@dataclass(frozen=True, eq=False)
class PairedScores:
    """Scores of one metric on the same samples in two arms.

    Attributes:
        metric: Name, e.g. ``refusal``.
        unit: Unit of display: ``pp`` (scores are shares in [0, 1], shown in points), ``nats/token``, ``nats``, ...
        binary: Whether each score is 0 or 1.
        higher_is_better: Direction of the metric; the sign is turned where it is false.
        ids: Unique sample ids, length ``n``. Ids that occur in two metrics mean the same sample.
        reference: Scores of the reference arm, shape ``(n,)``; NaN is unscored.
        treatment: Scores of the treatment arm, shape ``(n,)``; NaN is unscored.
        clusters: Template or source of each sample; ``None`` entries are clusters of their own.
        score_range: Lowest and highest possible score, for worst-case bounds; [0, 1] if binary, else unknown.
        title: Readable name, where it is not ``metric``.
        chance: Score of guessing, in the unit of the scores; used for ``signal`` only.

    Raises:
        DataError: If lengths differ, ids repeat, or a score is infinite or not 0 or 1 though binary.
    """

    metric: str
    unit: str
    binary: bool
    higher_is_better: bool
    ids: tuple[str, ...]
    reference: np.ndarray
    treatment: np.ndarray
    clusters: tuple[str | None, ...] | None = None
    score_range: tuple[Number, Number] | None = None
    chance: Number | None = None
    title: str = ""

    def __post_init__(self) -> None:
        shapes = {np.shape(self.reference), np.shape(self.treatment), (len(self.ids),)}
        if len(shapes) > 1 or (self.clusters is not None and len(self.clusters) != len(self.ids)):
            raise DataError(f"metric '{self.metric}': {len(self.ids)} ids, but scores or clusters of other lengths.")
        if len(set(self.ids)) < len(self.ids):
            raise DataError(f"metric '{self.metric}': {len(self.ids) - len(set(self.ids))} sample id(s) repeat.")
        for arm in (self.reference, self.treatment):
            known = np.asarray(arm, dtype=np.float64)
            known = known[~np.isnan(known)]
            if not np.all(np.isfinite(known)) or (self.binary and not np.all((known == 0) | (known == 1))):
                raise DataError(
                    f"metric '{self.metric}': scores must be {'0 or 1' if self.binary else 'finite'}, or NaN."
                )

    @property
    def limits(self) -> tuple[float, float] | None:
        """Lowest and highest possible score, higher is better."""
        if self.score_range is None and not self.binary:
            return None
        low, high = (0, 1) if self.score_range is None else self.score_range
        if self.higher_is_better:
            return float(low), float(high)
        return (float(1 - high), float(1 - low)) if self.binary else (float(-high), float(-low))

    def oriented(self) -> tuple[np.ndarray, np.ndarray]:
        """Scores of both arms turned so that higher is better: ``1 - x`` if binary, ``-x`` otherwise."""
        arms = [np.asarray(arm, dtype=np.float64) for arm in (self.reference, self.treatment)]
        if not self.higher_is_better:
            arms = [1 - arm if self.binary else -arm for arm in arms]
        return arms[0], arms[1]


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What the gates need to know about the run, besides the scores. ``None`` means not checked, which fails closed.

    Attributes:
        samples_expected: Samples that each arm should have, by role: ``gain``, ``loss`` and, where used,
            ``over_refusal`` and ``signal``.
        weight_hashes: SHA-256 of the weights in the evaluated process, by arm.
        relative_weight_distance: ``|W_treatment - W_reference| / |W_reference|`` (Frobenius), ``>= 0``.
        artefact_hash_matches: Whether the artefact, read again, has the hash in the manifest.
        unused_adapter_keys: Adapter keys that were not used.
        zero_norm_modules: Modules whose update is zero.
        probe: ``n_probes``, ``max_abs_logit_difference``, ``mean_kl`` (nats), ``noise_floor`` (largest logit
            difference of an arm against itself), optionally ``noise_floor_kl`` and ``share_identical_answers``.
        fallbacks: Steps that failed and were replaced, each as ``step (Error: message)``; empty in a sound run.
        incoherent_shares: Share of empty or degenerate answers in [0, 1], by arm.
        selected_on_test: Whether the merge was chosen by its score on these samples; ``None`` if nobody declared it.
        looks: Times these samples were evaluated for a choice, this one included.
        seeds: Seeds of a stochastic merge that were evaluated.
        stochastic: Whether merging draws random numbers (e.g. DARE).
        judge: Name of the judge; empty for a metric without one.
        judge_validated: Whether it was compared with blind human labels per arm.
        reference: Name of the reference arm.
        treatment: Name of the treatment arm.
        manifest: SHA-256 of the manifest.
    """

    samples_expected: Mapping[str, int]
    weight_hashes: Mapping[str, str]
    relative_weight_distance: Number | None
    artefact_hash_matches: bool | None
    unused_adapter_keys: tuple[str, ...] | None
    zero_norm_modules: tuple[str, ...] | None
    probe: Mapping[str, Number | None] | None
    fallbacks: tuple[str, ...]
    incoherent_shares: Mapping[str, Number | None] | None = None
    selected_on_test: bool | None = None
    looks: int = 1
    seeds: int = 1
    stochastic: bool = False
    judge: str = ""
    judge_validated: bool = False
    reference: str = "U"
    treatment: str = "M"
    manifest: str | None = None


def negated(d: Difference) -> Difference:
    """Difference with its sign turned; ``b`` still counts the lost, ``c`` the gained samples."""
    ci = None if d.ci is None else (-d.ci[1], -d.ci[0])
    return replace(d, estimate=None if d.estimate is None else 0.0 - d.estimate, ci=ci)
