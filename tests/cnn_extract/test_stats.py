import io

import numpy as np
import pytest
from PIL import Image

from cnn_extract.images import decode_image
from cnn_extract.run import run
from cnn_extract.stats import colourfulness, image_statistics, stat_names
from features.store import FeatureStore
from tests.cnn_extract.conftest import picture, write_labels


def by_hand(rgb):
    """Every statistic from its definition, in float64, for values from 0 to 255."""
    rgb = rgb.astype(np.float64)
    found = {}
    for k, channel in enumerate("rgb"):
        values = rgb[:, :, k]
        for stat in ("mean", "median", "std", "max", "min"):
            found[f"{stat}_{channel}"] = getattr(np, stat)(values)
    red, green, blue = rgb[:, :, 0], rgb[:, :, 1], rgb[:, :, 2]
    found["brightness"] = (0.299 * red + 0.587 * green + 0.114 * blue).mean()
    rg, yb = red - green, 0.5 * (red + green) - blue
    spread = np.sqrt(rg.std() ** 2 + yb.std() ** 2)
    found["colourfulness"] = spread + 0.3 * np.sqrt(rg.mean() ** 2 + yb.mean() ** 2)
    height, width = rgb.shape[:2]
    found |= {"longer_side": max(height, width), "is_taller": float(height > width)}
    return found | {"height": height, "width": width, "aspect": width / height}


def saved(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def every_mode(rng):
    """Make (encoded file, the pixels a viewer shows) for every mode that decoding promises."""
    rgb = picture(rng, 30, 21)
    grey = rgb[:, :, 0].copy()
    three = np.repeat(grey[:, :, None], 3, axis=2)
    deep = rng.integers(0, 65_536, (15, 40)).astype(np.uint16)
    alpha = np.where(rng.random((30, 21)) > 0.5, 255, 0).astype(np.uint8)
    ink = 255 - np.dstack([rgb, np.full_like(grey, 255)])
    palette = rng.integers(0, 256, (8, 3)).astype(np.uint8)
    index = rng.integers(0, 8, (12, 9)).astype(np.uint8)
    indexed = Image.fromarray(index, "P")
    indexed.putpalette(palette.tobytes())
    sideways = Image.Exif()
    sideways[0x0112] = 8
    return {
        "plain": (saved(Image.fromarray(rgb), "PNG"), rgb),
        "grey": (saved(Image.fromarray(grey), "PNG"), three),
        "16-bit": (saved(Image.fromarray(deep), "PNG"), np.dstack([deep / 257] * 3)),
        "alpha": (
            saved(Image.fromarray(np.dstack([rgb, alpha])), "PNG"),
            np.where(alpha[:, :, None] > 0, rgb, 255),
        ),
        "cmyk": (saved(Image.fromarray(ink, "CMYK"), "TIFF"), rgb),
        "palette": (saved(indexed, "PNG"), palette[index]),
        "orientation": (saved(Image.fromarray(rgb), "PNG", exif=sideways), np.rot90(rgb)),
        "animated": (
            saved(
                Image.fromarray(rgb),
                "PNG",
                save_all=True,
                append_images=[Image.new("RGB", (21, 30))],
            ),
            rgb,
        ),
    }


MODES = ("plain", "grey", "16-bit", "alpha", "cmyk", "palette", "orientation", "animated")


@pytest.mark.parametrize("mode", MODES)
def test_statistics_equal_their_definitions(rng, mode):
    """A mode decoded wrongly, or a statistic computed wrongly, differs from plain numpy."""
    data, shown = every_mode(rng)[mode]
    got = dict(zip(stat_names(), image_statistics(decode_image(data, mode)), strict=True))
    expected = by_hand(shown)
    assert list(got) == list(expected)
    for name, value in expected.items():
        assert got[name] == pytest.approx(value, rel=1e-5, abs=1e-3), name


def test_grey_image_has_no_colourfulness(rng):
    """Hasler and Suesstrunk's measure is 0 for grey."""
    grey = np.repeat(rng.integers(0, 256, (9, 9, 1)).astype(np.uint8), 3, axis=2)
    assert colourfulness(grey) == 0.0


def test_median_of_an_even_number_of_pixels_lies_between_two():
    """The histogram's median must be numpy's."""
    pixels = np.array([[[0] * 3, [1] * 3, [4] * 3, [9] * 3]], dtype=np.uint8)
    assert image_statistics(pixels)[1] == 2.5


@pytest.mark.parametrize("n_channels", [1, 2, 6])
def test_statistics_of_any_number_of_channels(rng, n_channels):
    """Six-channel microscopy images get five statistics a channel (docs/recipes.md: C1)."""
    pixels = rng.integers(0, 256, (7, 8, n_channels)).astype(np.uint8)
    got = dict(zip(stat_names(n_channels), image_statistics(pixels), strict=True))
    assert len(got) == 5 * n_channels + 6
    last = pixels[:, :, -1]
    assert got[f"std_c{n_channels - 1}"] == pytest.approx(last.std(), rel=1e-6)
    assert got["brightness"] == pytest.approx(pixels.mean(), rel=1e-6)


def test_statistics_do_not_change_with_the_model_input(tmp_path, rng, request_for, silent):
    """Statistics of the crop or the resized input would depend on the model."""
    folder = tmp_path / "images"
    folder.mkdir()
    shown = {}
    for k, (height, width) in enumerate(
        [(30, 300), (300, 30), (50, 50), (20, 25), (200, 210), (9, 9)]
    ):
        shown[f"i{k}"] = picture(rng, height, width)
        Image.fromarray(shown[f"i{k}"]).save(folder / f"i{k}.png")
    labels = write_labels(tmp_path / "labels.csv", {i: ["tag::a"] for i in shown})
    frames = []
    for size in (32, 64):
        out = tmp_path / f"store{size}"
        run(request_for(folder, labels, size=size, out=out), silent)
        frames.append(FeatureStore.open(out).image_stats)
    np.testing.assert_array_equal(frames[0], frames[1])
    expected = [list(by_hand(shown[i]).values()) for i in frames[0].index]
    np.testing.assert_allclose(frames[0], expected, rtol=1e-5, atol=1e-3)
