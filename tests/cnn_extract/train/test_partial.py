"""Partial convolutions against a slow reference."""

import pytest
import torch

from cnn_extract.train.partial import border_ratio, make_partial


def reference(conv, batch):
    """Convolve each place with the kernel's weights scaled up for what lies outside (A21)."""
    pad, stride, kernel = conv.padding[0], conv.stride[0], conv.kernel_size[0]
    side = (batch.shape[2] + 2 * pad - kernel) // stride + 1
    made = torch.zeros(len(batch), conv.out_channels, side, side)
    for y in range(side):
        for x in range(side):
            rows = range(y * stride - pad, y * stride - pad + kernel)
            columns = range(x * stride - pad, x * stride - pad + kernel)
            inside = [
                (i, j, r, c)
                for i, r in enumerate(rows)
                for j, c in enumerate(columns)
                if 0 <= r < batch.shape[2] and 0 <= c < batch.shape[3]
            ]
            total = sum(batch[:, :, r, c] @ conv.weight[:, :, i, j].T for i, j, r, c in inside)
            made[:, :, y, x] = total * kernel**2 / len(inside)
    return made + (0 if conv.bias is None else conv.bias.view(1, -1, 1, 1))


@pytest.mark.parametrize(("kernel", "stride", "bias"), [(3, 1, True), (3, 2, False), (5, 1, False)])
def test_borders_are_weighed_up_as_in_the_paper(kernel, stride, bias):
    """A21: the border stays dim, or the bias is scaled with it."""
    conv = torch.nn.Conv2d(2, 3, kernel, stride, padding=kernel // 2, bias=bias)
    model = torch.nn.Sequential(conv)
    batch = torch.randn(2, 2, 7, 7)
    wanted = reference(conv, batch)
    assert make_partial(model) == 1
    torch.testing.assert_close(model(batch), wanted)


def test_unpadded_convolutions_stay_as_they_are():
    """A21: convolutions without borders are changed too."""
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 1, 3), torch.nn.Conv2d(1, 1, 1))
    assert make_partial(model) == 0


def test_the_ratio_is_one_inside_and_nine_quarters_in_a_corner():
    """A21: the interior is changed."""
    conv = torch.nn.Conv2d(1, 1, 3, padding=1)
    ratio = border_ratio(conv, torch.zeros(1, 1, 5, 5))[0, 0]
    assert ratio[2, 2] == 1
    assert ratio[0, 0] == pytest.approx(9 / 4)
    assert ratio[0, 2] == pytest.approx(9 / 6)


def test_parameter_names_stay_so_checkpoints_fit():
    """A21: a pretrained checkpoint no longer loads into the network."""
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 1, 3, padding=1))
    before = list(model.state_dict())
    make_partial(model)
    assert list(model.state_dict()) == before
