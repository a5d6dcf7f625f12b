"""Ranks and gaps of the class inside its image, against plain sorting."""

import numpy as np
import pytest

from features.assemble import PairFeatures


def rank(values, own):
    """Classes strictly above; equal ones share a rank."""
    return sum(1 for value in values if value > own)


def test_ranks_equal_counting_by_hand(example):
    """Ranks under a model, the blend, or inside the group would be mixed up."""
    groups = example.query.class_group
    for i in range(len(example.blend)):
        values = example.blend[i].tolist()
        for c, own in enumerate(values):
            group = [v for v, g in zip(values, groups, strict=True) if g == groups[c]]
            assert example.matrix_of["rank:blend"][i, c] == rank(values, own)
            assert example.matrix_of["rank_group:blend"][i, c] == rank(group, own)


def test_ranks_of_each_model_equal_counting_by_hand(example):
    """Every model must be ranked by its own probabilities, ties included."""
    for m, model in enumerate(example.query.models):
        got = example.matrix_of[f"rank:{model}"]
        for i in range(0, len(example.blend), 3):
            values = example.probs[m, i].tolist()
            assert got[i].tolist() == [rank(values, own) for own in values]


def test_gaps_and_ratios_equal_plain_arithmetic(example):
    """A gap to the wrong maximum (image or group) would still look like a sensible number."""
    groups = example.query.class_group
    for i in range(len(example.blend)):
        values = example.blend[i].astype(np.float64)
        for c, own in enumerate(values):
            top, group_top = values.max(), values[groups == groups[c]].max()
            below = values[values < own]
            expected = {
                "gap_max": top - own,
                "ratio_max": own / top,
                "gap_group_max": group_top - own,
                "ratio_group_max": own / group_top,
                "gap_next": own - (below.max() if len(below) else 0),
            }
            got = {name: example.matrix_of[f"{name}:blend"][i, c] for name in expected}
            assert got == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_each_models_rank_in_the_class_group_is_an_option(
    small_stack, slice_labels, slice_fold, stream
):
    """Ranks over all classes hide the order inside a small class group."""
    blocks = (("ranks", {"per_model": "both"}),)
    features = PairFeatures(blocks=blocks, candidates=9)
    some = small_stack[::30]
    table = stream(features.fit(small_stack, slice_labels, slice_fold), some)
    codes = some.label_space.group_codes
    for model, values in some.probabilities.items():
        p = np.asarray(values, dtype=np.float32)
        above = p[table.image] > p[table.image, table.cls][:, None]
        expected = (above & (codes == codes[table.cls][:, None])).sum(axis=1)
        np.testing.assert_array_equal(table[f"rank_group:{model}"], expected)
    with pytest.raises(ValueError, match="per_model must be one of"):
        PairFeatures(blocks=(("ranks", {"per_model": "group"}),)).fit(
            small_stack, slice_labels, slice_fold
        )
