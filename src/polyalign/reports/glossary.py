"""Terms of the report, for somebody who has never met them."""

GLOSSARY = {
    "Preferred and rejected answers": "Two answers to the same prompt; people (or a program) "
    "liked the first better. Also called chosen and rejected.",
    "Reference": "The model that training started from (or another one that it is told to "
    "stay close to).",
    "Implicit reward": "How much more likely the trained model finds an answer than the reference "
    "does, on a log scale, times beta. Training on preferences moves it; no separate reward model "
    "is needed.",
    "Reward margin": "Implicit reward of the preferred answer minus that of the rejected one. "
    "Positive: the model has learned this preference.",
    "Ranking accuracy": "Share of pairs in which the preferred answer scores higher. A coin "
    "reaches 50 %; people themselves often agree on only 60 to 75 %.",
    "Log-probability": "How likely a model finds a text, on a log scale: 0 is certain, more "
    "negative is less likely. Longer texts have lower sums.",
    "Nats": "The unit of natural logarithms: 1 nat is a factor of 2.7 in probability, 10 nats one "
    "of 22,000.",
    "Divergence (KL)": "How differently two models answer, in nats: 0 means alike.",
    "Perplexity": "How many words the model wavers between at each step of a given text. Lower is "
    "less surprised.",
    "Interval": "Where the true value lies with 95 % confidence, given so few examples. Two "
    "figures whose intervals overlap widely may not differ at all.",
    "p": "How often a difference this large would come about by luck alone if there were none.",
    "Held out": "Examples that were not trained on; only they tell whether something general was "
    "learned.",
    "Win rate": "Share of prompts on which the judge likes the model's answer better than the "
    "baseline's.",
    "Calibration": "Whether the model is right as often as it is sure: dots on the diagonal are "
    "calibrated.",
    "Low-rank adapter (LoRA)": "A small set of extra weights that is trained while the large model "
    "stays as it is.",
}
