"""Explanations: contributions that add up, importance by block."""

import numpy as np
import pytest
from scipy.special import logit

from stacker import PairStacker
from stacker.explain import explain_features, gain_importance, permutation_importance

BLOCKS = ("probabilities", "logits", "ranks", "neighbours", "class_prior")


@pytest.fixture(scope="module", params=["lightgbm", ("lightgbm", "xgboost")])
def fitted(request, slice_stack, slice_labels):
    """A model that moves labels, with one booster and with two averaged."""
    model = PairStacker(
        request.param,
        blocks=BLOCKS,
        cv=3,
        booster_params={"learning_rate": 0.2},
        random_state=0,
        n_jobs=2,
    )
    model.fit(slice_stack, slice_labels)
    assert model.shrinkage_ > 0
    return model


def changed_image(model, stack):
    before = model.base_decision_.predict(model.base_.predict(stack)[0])
    after = model.predict(stack)
    return int(np.argmax((before != after).sum(axis=1)))


def test_contributions_sum_to_the_correction_of_the_log_odds(fitted, slice_stack):
    """An explanation that does not add up explains something else."""
    image = changed_image(fitted, slice_stack)
    table = fitted.explain(slice_stack, image, labels=slice_stack.classes.tolist())
    moved = logit(table["stack"].astype(float)) - logit(table["base"].astype(float))
    np.testing.assert_allclose(table["correction"], moved, atol=2e-4)
    np.testing.assert_allclose(table.iloc[:, 4:].sum(axis=1), table["correction"], atol=1e-5)
    assert set(table.columns[4:]) == {*BLOCKS, "(bias)", "(start)"}


def test_added_and_dropped_labels_are_those_of_the_two_sets(fitted, slice_stack):
    """The table lists exactly the labels on which stack and base differ."""
    image = changed_image(fitted, slice_stack)
    table = fitted.explain(slice_stack, slice_stack.image_ids[image])
    one = slice_stack[[image]]
    before = fitted.base_decision_.predict(fitted.base_.predict(one)[0])[0] > 0
    after = fitted.predict(one).toarray()[0] > 0
    names = slice_stack.classes
    assert set(table.index[table["change"] == "added"]) == set(names[after & ~before])
    assert set(table.index[table["change"] == "dropped"]) == set(names[before & ~after])
    assert len(table) == (before != after).sum()
    assert (table["correction"].abs().diff().dropna() <= 0).all()


def test_features_behind_a_label_have_their_own_values(fitted, slice_stack):
    """A feature's value shown must be the one the booster read."""
    image = changed_image(fitted, slice_stack)
    shown = explain_features(fitted, slice_stack, image, labels="predicted", n_features=200)
    own = shown[shown["feature"] == f"p:{slice_stack.models[0]}"].dropna()
    probs = slice_stack.probabilities[slice_stack.models[0]][image]
    expected = probs[slice_stack.label_space.index(own["class"].tolist())]
    np.testing.assert_allclose(own["value"], expected, rtol=1e-3)


def test_gain_by_block_sums_the_features(fitted):
    """Shares of blocks are the sums of their columns' shares and sum to 1."""
    blocks, features = gain_importance(fitted), gain_importance(fitted, by="feature")
    assert blocks["gain"].sum() == pytest.approx(1)
    sums = features.groupby("block")["gain"].sum()
    for _, row in blocks.iterrows():
        assert row["gain"] == pytest.approx(sums[row["block"]])


def test_permuting_a_block_that_matters_costs_more_than_noise(slice_stack, slice_labels):
    """A metadata column of noise loses nothing; probabilities of the base's models do."""
    rng = np.random.default_rng(0)
    from features import Stack

    stack = Stack(
        slice_stack.probabilities,
        image_ids=slice_stack.image_ids,
        classes=slice_stack.classes,
        embeddings=slice_stack.embeddings,
        metadata=rng.random((len(slice_stack), 1)),
    )
    model = PairStacker(
        blocks=("ranks", "neighbours", "metadata"), cv=3, random_state=0, n_jobs=2
    ).fit(stack, slice_labels)
    table = permutation_importance(model, stack, slice_labels, n_repeats=2).set_index("block")
    assert table.loc["neighbours", "log_loss_rise"] > 3 * abs(
        table.loc["metadata", "log_loss_rise"]
    )
    assert table.loc["neighbours", "fbeta_loss"] > 0
    again = permutation_importance(model, stack, slice_labels, n_repeats=2).set_index("block")
    np.testing.assert_array_equal(table, again)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image": "nobody"}, "has no image 'nobody'"),
        ({"image": 300}, "position below 300"),
        ({"image": 0, "labels": "all"}, "labels must be of"),
    ],
)
def test_unknown_images_and_labels_are_named(fitted, slice_stack, arguments, message):
    """A wrong image or choice of labels says what there is."""
    with pytest.raises(ValueError, match=message):
        fitted.explain(slice_stack, **arguments)
    with pytest.raises(ValueError, match="by must be"):
        gain_importance(fitted, by="model")
