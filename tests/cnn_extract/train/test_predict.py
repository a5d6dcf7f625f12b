"""Prediction: which views, and what is averaged."""

import numpy as np
import pytest
import torch

from cnn_extract.train.predict import average_views, predict_rows
from cnn_extract.train.recipe import PredictRecipe
from tests.cnn_extract.train.conftest import ArrayFeed


class LeftColumn(torch.nn.Module):
    """Logit of a class: the mean of its channel's left half; a flip changes it."""

    def forward(self, batch):
        return batch[..., : batch.shape[3] // 2].mean((2, 3))


IMAGES = torch.randn(5, 3, 4, 4, generator=torch.Generator().manual_seed(1))


def predicted(**settings):
    feed = ArrayFeed(IMAGES, [])
    probs = predict_rows(
        LeftColumn(),
        feed,
        np.array([4, 0, 2]),
        PredictRecipe(**settings),
        [""] * 3,
        softmax=False,
        batch_size=2,
    )
    return probs, feed.seen


def test_flipping_averages_the_image_and_its_mirror_image():
    """A17: the mirror image is not looked at, or along another axis."""
    got, _ = predicted(hflip=True)
    rows = IMAGES[[4, 0, 2]]
    both = (LeftColumn()(rows) + LeftColumn()(rows.flip(3))) / 2
    np.testing.assert_allclose(got, both.sigmoid().numpy(), rtol=1e-5)


def test_the_logits_are_averaged_not_the_probabilities():
    """B5: the mean is taken after the sigmoid."""
    views = [torch.tensor([[3.0, -1.0]]), torch.tensor([[-1.0, -1.0]])]
    logits = average_views(views, ["", ""], mean="logits", softmax=False)
    torch.testing.assert_close(logits, torch.tensor([[1.0, -1.0]]).sigmoid())
    probs = average_views(views, ["", ""], mean="probabilities", softmax=False)
    torch.testing.assert_close(probs, (views[0].sigmoid() + views[1].sigmoid()) / 2)
    assert not torch.allclose(logits, probs)
    of_one = average_views(views, ["", ""], mean="logits", softmax=True)
    torch.testing.assert_close(of_one, torch.tensor([[1.0, -1.0]]).softmax(1))


def test_stochastic_views_stand_beside_one_plain_view():
    """B5: of four views three are training's and one is plain."""
    _, seen = predicted(hflip=False, views=3)
    assert len(seen) == 2 * 4
    first = seen[:4]
    assert [view.index for view in first[0]] == [4, 0]
    assert all(view.seed == -1 for view in first[0])
    seeds = [[view.seed for view in batch] for batch in first[1:]]
    assert len({s for batch in seeds for s in batch}) == 6


def test_an_images_views_do_not_depend_on_its_batch():
    """Predictions change with the batch size or the number of processes."""
    _, seen = predicted(hflip=False, views=1)
    by_image = {view.index: view.seed for batch in seen[1::2] for view in batch}
    _, again = predicted(hflip=False, views=1)
    assert by_image == {view.index: view.seed for batch in again[1::2] for view in batch}


@pytest.mark.parametrize(("precision", "close"), [("float32", 1e-6), ("bf16", 0.05)])
def test_half_precision_runs_the_forward_pass_in_half(precision, close):
    """A25: the setting does nothing, or breaks the numbers."""

    class Linear(torch.nn.Module):
        def forward(self, batch):
            weight = torch.linspace(-1, 1, 3 * 48).view(3, 48)
            made = torch.nn.functional.linear(batch.flatten(1), weight)
            kinds.append(made.dtype)
            return made

    kinds = []
    rows = np.arange(5)
    recipe = PredictRecipe(precision=precision, hflip=False)
    got = predict_rows(
        Linear(), ArrayFeed(IMAGES, []), rows, recipe, [""] * 3, softmax=False, batch_size=5
    )
    assert set(kinds) == {torch.float32 if precision == "float32" else torch.bfloat16}
    weight = torch.linspace(-1, 1, 3 * 48).view(3, 48)
    wanted = (IMAGES.flatten(1) @ weight.T).sigmoid().numpy()
    np.testing.assert_allclose(got, wanted, atol=close)
