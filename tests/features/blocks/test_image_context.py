"""What the blend says about the image and about the row's group, against plain sums."""

import math

import pytest


def summary(values):
    """Sum (expected labels), maximum, entropy in nats, classes above 0.1 and 0.5."""
    clipped = [min(max(v, 1e-7), 1 - 1e-7) for v in values]
    return {
        "sum": math.fsum(values),
        "max": max(values),
        "entropy": math.fsum(-v * math.log(v) - (1 - v) * math.log1p(-v) for v in clipped),
        "above_0.1": sum(v > 0.1 for v in values),
        "above_0.5": sum(v > 0.5 for v in values),
    }


@pytest.mark.parametrize("of", ["image", "group"])
def test_summaries_equal_plain_sums(example, of):
    """Sums over another group, or over candidates only, would go unseen."""
    groups = example.query.class_group
    for i in range(len(example.blend)):
        for c in range(0, 60, 3):
            values = [
                float(v)
                for v, group in zip(example.blend[i], groups, strict=True)
                if of == "image" or group == groups[c]
            ]
            expected = {f"{name}:{of}": value for name, value in summary(values).items()}
            got = {name: example.matrix_of[name][i, c] for name in expected}
            assert got == pytest.approx(expected, rel=1e-5, abs=1e-5)
