"""Losses of one list worked out by hand from the cards, in numpy alone, and lists to try them."""

import numpy as np

from tests.methods.by_hand import close, neg_logsig

DRAW = np.random.default_rng(5)
SIZES = (4, 2, 3, 5)
U, K = len(SIZES), max(SIZES)
THERE = np.arange(K) < np.array(SIZES)[:, None]
THERE[2] = [True, False, True, False, True]  # what is missing need not stand last


def lists(values):
    return np.where(THERE, values, np.nan)


N = DRAW.integers(1, 8, (U, K))
LISTS = {
    "lp": lists(-DRAW.uniform(0.3, 2, (U, K)) * N),
    "rf": lists(-DRAW.uniform(0.3, 2, (U, K)) * N),
    "n": np.where(THERE, N, 0),
    "lq": lists(-DRAW.uniform(0.3, 2, (U, K)) * N),
    "r": lists(DRAW.uniform(0, 1, (U, K))),
}
RATIO = {k: LISTS[k] for k in ("lp", "rf", "r")}
LENGTHS = {k: LISTS[k] for k in ("lp", "n", "r")}


def softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


def log_sum(x):
    return np.logaddexp.reduce(np.asarray(x))


def slope(f, x, step=1e-6):
    """Central differences of a scalar function, by numpy alone."""
    out = np.zeros(len(x))
    for i in range(len(x)):
        e = np.zeros(len(x))
        e[i] = step
        out[i] = (f(x + e) - f(x - e)) / (2 * step)
    return out


def by_hand(loss, arrays=LISTS):
    """Loss of every list and the gradient by lp of their mean; ``loss`` sees one list's arrays."""
    value, gradient = np.zeros(U), np.zeros((U, K))
    for u in range(U):
        own = THERE[u]
        one = {k: v[u][own] for k, v in arrays.items()}
        value[u] = loss(one["lp"], one)
        gradient[u, own] = slope(lambda x, one=one: loss(x, one), one["lp"]) / U
    return value, gradient


def check(result, loss, arrays=LISTS):
    value, gradient = by_hand(loss, arrays)
    close(result.per_unit, value)
    close(result.value, value.mean())
    close(result.gradients["lp"], gradient, 2e-8)


# Losses of one list, from the cards


def infonca(beta, T):
    return lambda lp, a: -(softmax(a["r"] / T) * np.log(softmax(beta * (lp - a["rf"])))).sum()


def nca(beta, T):
    def loss(lp, a):
        p, R = softmax(a["r"] / T), beta * (lp - a["rf"])
        return (p * neg_logsig(R)).sum() + neg_logsig(-R).mean()

    return loss


def exo(beta, T):
    def loss(lp, a):
        p, q = softmax(a["r"] / T), softmax(beta * (lp - a["rf"]))
        return (q * (np.log(q) - np.log(p))).sum()

    return loss


def brain(g, given):
    def loss(lp, a):
        lq = a["lq"] if given else a["rf"]
        weight = np.exp(a["rf"] - lq + a["r"] / g)
        b = np.exp(lp - lq)
        return -(weight / weight.sum() * np.log(b / b.sum())).sum()

    return loss


def ordered(r):
    return [(i, j) for i in range(len(r)) for j in range(len(r)) if r[i] > r[j]]


def lipo(variant, beta):
    def loss(lp, a):
        s, r = beta * (lp - a["rf"]), a["r"]
        rank = np.empty(len(s))
        rank[np.argsort(-s)] = np.arange(1, len(s) + 1)

        def delta(i, j):
            gain = abs(2 ** r[i] - 2 ** r[j])
            return gain * abs(1 / np.log(1 + rank[i]) - 1 / np.log(1 + rank[j]))

        order = np.argsort(-r)
        match variant:
            case "lambda":
                return sum(delta(i, j) * neg_logsig(s[i] - s[j]) for i, j in ordered(r))
            case "pair-logistic":
                return sum(neg_logsig(s[i] - s[j]) for i, j in ordered(r))
            case "pair-hinge":
                return sum(max(0.0, 1 - (s[i] - s[j])) for i, j in ordered(r))
            case "list-mle":
                return sum(log_sum(s[order[k:]]) - s[order[k]] for k in range(len(s) - 1))
            case "softmax":
                return -(r / r.sum() * np.log(softmax(s))).sum()
            case "point-mse":
                return ((r - s) ** 2).sum()
            case "point-sigmoid":
                return (r * neg_logsig(s) + (1 - r) * neg_logsig(-s)).sum()

    return loss


def pro(weight, form):
    def loss(lp, a):
        order = np.argsort(-a["r"])
        p, r, size = (lp / a["n"])[order], a["r"][order], len(lp)
        total = 0.0
        for k in range(size - 1):
            tau = r[k] - r[k:] if form == "paper" else np.ones(size - k)
            tau[0] = tau[1:].max() if form == "paper" else 1.0
            total += log_sum(tau * p[k:]) - tau[0] * p[k]
        return total - weight * (size - 1) ** 2 * lp[order[0]]

    return loss


def rrhf(weight, penalty, nll):
    def loss(lp, a):
        p, best = lp / a["n"] ** penalty, np.argmax(a["r"])
        rank = sum(max(0.0, p[j] - p[i]) for i, j in ordered(a["r"]))
        return weight * rank - (lp[best] if nll == "sum" else lp[best] / a["n"][best])

    return loss
