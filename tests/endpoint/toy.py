"""A model that is no more than a formula: what the server and the runtime of the tests both compute."""
import math

VOCABULARY = 29


def logits(ids, scale, other=0.0, base=0.0):
    """Rows of logits. `scale`: of the adapter. `other`, `base`: something else in its place, in the base's."""
    rows = []
    for i, token in enumerate(ids):
        rows.append([math.sin(0.37 * (i + 1 + base) * (v + 1)) + scale * math.cos(0.91 * token + 0.53 * v) + other * math.sin(1.7 * token * v)
                     for v in range(VOCABULARY)])
    return rows


def log_probabilities(ids, scale, other=0.0, base=0.0):
    result = [None]
    for row, token in zip(logits(ids, scale, other, base), ids[1:]):
        result.append(row[token] - math.log(sum(math.exp(x) for x in row)))
    return result
