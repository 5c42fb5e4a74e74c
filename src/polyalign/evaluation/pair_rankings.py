"""Does a policy rank pairs rightly, how well could it at best, and which pairs are out of reach."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from polyalign.errors import DataError
from polyalign.evaluation.bench import Bench, Figure, Measured
from polyalign.evaluation.ranking import Ranking
from polyalign.metrics.arrays import Floats
from polyalign.metrics.comparison import paired_difference
from polyalign.metrics.intervals import Estimate, proportion
from polyalign.metrics.preference_rankings import (
    difficulty,
    dpo_loss,
    idealised_log_ratio,
    loss_to_reach,
    ranked,
)

QUANTILES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)


@dataclass(frozen=True)
class PreferenceRankings:
    """``evaluate --with``: ranking accuracy, the idealised one over betas, and difficulty.

    ``agreement`` names the column with the share of raters who prefer the chosen answer.
    """

    betas: tuple[float, ...]
    agreement: str = ""
    unanimous: float = 0.001
    tie: float = 0.01

    def __call__(self, bench: Bench) -> Measured:
        reference, beta = bench.reference(), bench.subject.beta
        found = bench.ranking(bench.subject.policy, reference, beta)
        assert found.chosen_ref is not None
        assert found.rejected_ref is not None
        a = self._agreement(bench, found)
        rf_w, rf_l = found.chosen_ref, found.rejected_ref
        n_w, n_l = found.chosen_steps, found.rejected_steps
        sides = {
            "raw": ((found.chosen, found.rejected), (rf_w, rf_l)),
            "normalised": (
                (found.chosen / n_w, found.rejected / n_l),
                (rf_w / n_w, rf_l / n_l),
            ),
        }
        figures: list[Figure] = []
        data: dict[str, Any] = {"pairs": len(found.keys), "beta": beta, "betas": list(self.betas)}
        for name, (policy, ref) in sides.items():
            now, was = (ranked(*both, a, tie=self.tie) for both in (policy, ref))
            ideal = {
                b: (idealised_log_ratio(*ref, b, a, unanimous=self.unanimous) > 0).astype(float)
                for b in self.betas
            }
            curve = {f"{b:g}": float(x.mean()) for b, x in ideal.items()}
            levels = sorted(curve.values())
            middle = float(np.median(levels))
            label = "" if name == "raw" else ", by mean log-probability"
            pairs = f"{len(now):,} pairs"
            figures += [
                Figure(
                    f"Ranking accuracy{label}",
                    self._share(now, found),
                    self._share(was, found),
                    paired_difference(now, was, found.cluster),
                    share=True,
                    n=pairs,
                ),
                Figure(
                    f"Idealised ranking accuracy{label}, median over beta",
                    middle,
                    share=True,
                    n=f"{levels[0]:.0%} to {levels[-1]:.0%}",
                ),
            ]
            data[name] = {
                "accuracy": self._share(now, found).to_json(),
                "accuracy_reference": self._share(was, found).to_json(),
                "idealised": curve,
                "alignment_gap": middle - float(now.mean()),
                "flipped": _part(now[was == 0]),
                "broken": _part(1 - now[was == 1]),
            }
        h = (found.chosen - rf_w) - (found.rejected - rf_l)
        c = difficulty(rf_w, rf_l)
        reach = loss_to_reach(c, beta)
        loss = dpo_loss(h, beta)
        wrong = c > 0
        flipped = data["raw"]["flipped"]
        figures += [
            Figure(
                "Implicit reward accuracy", self._share((h > 0).astype(float), found), share=True
            ),
            Figure("Pairs that the reference ranks wrongly", float(wrong.mean()), share=True),
        ]
        if flipped is not None:
            figures.append(
                Figure(
                    "Pairs that the reference ranks wrongly and the policy rightly, of these",
                    flipped,
                    share=True,
                    n=f"{int(wrong.sum()):,} pairs",
                )
            )
        data |= {
            "implicit_accuracy": self._share((h > 0).astype(float), found).to_json(),
            "loss": float(loss.mean()),
            "difficulty": {
                "quantiles": {f"{q:g}": float(np.quantile(c, q)) for q in QUANTILES},
                "wrong": float(wrong.mean()),
                "loss_to_reach": float(reach.mean()),
                "reached": float((loss <= reach).mean()),
            },
            "pairs_table": [
                {
                    "key": key,
                    "difficulty": float(c[i]),
                    "loss": float(loss[i]),
                    "loss_to_reach": float(reach[i]),
                }
                for i, key in enumerate(found.keys)
            ],
        }
        return Measured(tuple(figures), data)

    def _agreement(self, bench: Bench, found: Ranking) -> Floats | None:
        if not self.agreement:
            return None
        shares = {pair.key: pair.fields.get(self.agreement) for pair in bench.pairs}
        missing = next((key for key in found.keys if shares.get(key) is None), None)
        if missing is not None:
            raise DataError(
                f"Example {missing} has no number '{self.agreement}'.",
                "It is the share of raters who prefer the chosen answer.",
            )
        return np.array([shares[key] for key in found.keys], dtype=np.float64)

    @staticmethod
    def _share(values: Floats, found: Ranking) -> Estimate:
        return proportion(values, found.cluster)


def _part(values: Floats) -> float | None:
    return float(values.mean()) if len(values) else None
