"""Heads: widths, groups, cosines."""

import numpy as np
import pytest
import torch

from cnn_extract.train.heads import cosine_head, make_head
from cnn_extract.train.recipe import ModelRecipe

GROUPS = ["culture", "tag", "culture", "tag", "tag"]
SHARE = np.array([0.5, 0.1, 0.2, 0.3, 0.4])


def linear_layers(head):
    return [m for m in head.modules() if isinstance(m, torch.nn.Linear)]


def test_a_linear_head_is_one_layer_with_dropout():
    """D1: the head's dropout is lost."""
    head = make_head(ModelRecipe(dropout=0.5), 8, GROUPS, SHARE)
    assert [layer.weight.shape for layer in linear_layers(head)] == [(5, 8)]
    assert [m.p for m in head.modules() if isinstance(m, torch.nn.Dropout)] == [0.5]


def test_a_fresh_head_says_how_frequent_classes_are():
    """Training spends its first epochs on learning that classes are rare."""
    head = make_head(ModelRecipe(), 8, GROUPS, SHARE).eval()
    probs = torch.sigmoid(head(torch.zeros(1, 8)))[0].detach().numpy()
    np.testing.assert_allclose(probs, SHARE, rtol=1e-5)


def test_an_mlp_head_has_the_hidden_width():
    """The MLP's width is not the recipe's."""
    head = make_head(ModelRecipe(head="mlp", hidden=16), 8, GROUPS, SHARE)
    assert [tuple(layer.weight.shape) for layer in linear_layers(head)] == [(16, 8), (5, 16)]


@pytest.mark.parametrize("kind", ["linear", "mlp", "cosine"])
def test_each_group_has_a_head_of_its_own(kind):
    """A8, A29: culture and tag share a head, or columns are swapped between them."""
    recipe = ModelRecipe(head=kind, per_group=True, hidden=4)
    head = make_head(recipe, 8, GROUPS, SHARE).eval()
    features = torch.randn(3, 8)
    before = head(features)
    assert before.shape == (3, 5)
    with torch.no_grad():
        for parameter in head.heads[0].parameters():
            parameter.add_(torch.randn_like(parameter))
    changed = (head(features) != before).any(0)
    assert changed.tolist() == [group == "culture" for group in GROUPS]


def test_a_grouped_fresh_head_keeps_each_classs_frequency():
    """A29: the columns of the groups are put back in another order."""
    head = make_head(ModelRecipe(per_group=True), 8, GROUPS, SHARE).eval()
    probs = torch.sigmoid(head(torch.zeros(1, 8)))[0].detach().numpy()
    np.testing.assert_allclose(probs, SHARE, rtol=1e-5)


def test_a_cosine_head_gives_scaled_cosines():
    """C2: features or weights are not normalised."""
    head = cosine_head(8, 3, scale=30.0)
    features = torch.randn(5, 8)
    cosine = torch.nn.CosineSimilarity(dim=2)
    wanted = 30 * cosine(features[:, None], head.weight[None])
    torch.testing.assert_close(head(features), wanted)
    torch.testing.assert_close(head(7 * features), wanted)
