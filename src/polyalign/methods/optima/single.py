"""Known optima of methods that learn from demonstrations, thumbs, scores or lists."""

from __future__ import annotations

from polyalign.methods.optima.known import Known

KNOWN: dict[str, tuple[Known, ...]] = {
    "sft": (
        Known(
            "the law of the demonstrations",
            law=lambda w, o: w.regularised(0.5),
        ),
    ),
    "kto": (
        Known(
            "no closed form: the gradient vanishes at the zero point it came to (64 mismatches)",
            make={"prompts": 4, "responses": 4},
            hyper={"beta": 0.5},
            measure=lambda w, run: run.stationarity(64),
            tolerance=2e-4,
            steps=300,
        ),
    ),
}
