import io
import pickle
import zipfile

import numpy as np
import pytest
from PIL import Image

from cnn_extract.images import ImageError, decode_image, open_images, to_uint8
from tests.cnn_extract.conftest import picture


def encode(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def test_exif_orientation_is_applied(rng):
    """A photograph taken with the camera on its side would lie on its side."""
    pixels = picture(rng, 20, 30)
    exif = Image.Exif()
    exif[0x0112] = 6  # the viewer must turn it 90 degrees clockwise
    turned = decode_image(encode(Image.fromarray(pixels), exif=exif), "a.png")
    np.testing.assert_array_equal(turned, np.rot90(pixels, k=-1))


def test_palette_is_resolved(rng):
    """Palette indices would be taken for grey values."""
    palette = rng.integers(0, 256, (4, 3)).astype(np.uint8)
    index = rng.integers(0, 4, (5, 6)).astype(np.uint8)
    image = Image.fromarray(index, "P")
    image.putpalette(palette.tobytes())
    np.testing.assert_array_equal(decode_image(encode(image), "a.png"), palette[index])


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_is_laid_on_white(rng, mode):
    """What hides behind transparent pixels would be seen by the models."""
    colour = picture(rng, 9, 7)
    alpha = rng.integers(0, 256, (9, 7)).astype(np.uint8)
    if mode == "LA":
        colour = np.repeat(colour[:, :, :1], 3, axis=2)
        layered = Image.merge("LA", [Image.fromarray(c) for c in (colour[:, :, 0].copy(), alpha)])
    else:
        layered = Image.fromarray(np.dstack([colour, alpha]))
    share = alpha[:, :, None] / 255
    expected = np.rint(colour * share + 255 * (1 - share))
    got = decode_image(encode(layered), "a.png")
    assert np.abs(got - expected).max() <= 1


def test_transparent_palette_entry_is_white():
    """A GIF's transparent colour would show as whatever its palette holds there."""
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    data = encode(image, "GIF", transparency=1)
    assert decode_image(data, "a.gif").tolist() == [[[10, 20, 30], [255, 255, 255]]]


def test_cmyk_becomes_rgb(rng):
    """Print files have four channels, ink instead of light."""
    ink = rng.integers(0, 256, (6, 5, 4)).astype(np.uint8)
    data = encode(Image.fromarray(ink, "CMYK"), "TIFF")
    light = 255 - ink.astype(float)
    expected = light[:, :, :3] * light[:, :, 3:] / 255
    assert np.abs(decode_image(data, "a.tif") - expected).max() <= 1


def test_16_bit_grey_keeps_its_depth(rng):
    """Clipping 16-bit values at 255 turns a scan white."""
    deep = rng.integers(0, 65_536, (6, 5)).astype(np.uint16)
    got = decode_image(encode(Image.fromarray(deep)), "a.png")
    np.testing.assert_array_equal(got, np.repeat(deep[:, :, None], 3, axis=2))
    np.testing.assert_array_equal(to_uint8(got)[:, :, 0], np.rint(deep / 257))


@pytest.mark.parametrize("mode", ["L", "1"])
def test_grey_becomes_three_equal_channels(rng, mode):
    """A model of three channels cannot take one."""
    grey = np.where(rng.random((6, 5)) > 0.5, 255, 0).astype(np.uint8)
    got = decode_image(encode(Image.fromarray(grey).convert(mode)), "a.png")
    np.testing.assert_array_equal(got, np.repeat(grey[:, :, None], 3, axis=2))


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_first_frame_of_an_animation(kind):
    """Another frame, or a blend of frames, would be described."""
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue", "lime")]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encode(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert (decode_image(data, f"a.{kind.lower()}") == [255, 0, 0]).all()


def test_images_with_any_number_of_channels(rng):
    """Microscopes record six channels (docs/recipes.md: C1)."""
    stack = rng.integers(0, 256, (4, 5, 6)).astype(np.uint8)
    file = io.BytesIO()
    np.save(file, stack)
    np.testing.assert_array_equal(decode_image(file.getvalue(), "a.npy"), stack)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "TIFF"])
def test_truncated_image_names_its_file(rng, kind):
    """Half an image would be described as if the rest were grey."""
    data = encode(Image.fromarray(picture(rng, 64, 64)), kind)
    with pytest.raises(ImageError, match=r"cannot read image folder/half\.x"):
        decode_image(data[: len(data) // 2], "folder/half.x")


@pytest.mark.parametrize("data", [b"", b"no image at all", b"\x89PNG\r\n\x1a\n"])
def test_no_image_at_all_names_its_file(data):
    """An HTML error page saved as .jpg is common in scraped sets."""
    with pytest.raises(ImageError, match=r"cannot read image page\.jpg"):
        decode_image(data, "page.jpg")


@pytest.mark.parametrize("array", [np.zeros((2, 2, 3)), np.zeros(4, np.uint8)])
def test_array_of_other_type_or_shape_is_an_error(array):
    """Floats have no known range, and a vector is no image."""
    file = io.BytesIO()
    np.save(file, array)
    with pytest.raises(ImageError, match="uint8 or uint16"):
        decode_image(file.getvalue(), "a.npy")


def test_array_with_objects_is_not_unpickled():
    """A pickle runs code when it is read."""
    file = io.BytesIO()
    np.save(file, np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(ImageError, match=r"cannot read image a\.npy"):
        decode_image(file.getvalue(), "a.npy")


def test_float_image_is_an_error():
    """Nobody knows which float is white."""
    data = encode(Image.fromarray(np.zeros((2, 2), np.float32)), "TIFF")
    with pytest.raises(ImageError, match="mode F"):
        decode_image(data, "a.tif")


def test_decompression_bomb_is_an_error(monkeypatch):
    """A few kilobytes that unpack to gigabytes would take the machine down."""
    monkeypatch.setattr("cnn_extract.images.MAX_PIXELS", 100)
    with pytest.raises(ImageError, match="20 x 20 pixels are more than the 100"):
        decode_image(encode(Image.new("RGB", (20, 20))), "bomb.png")


def test_folder_and_zip_give_the_same_images(tmp_path, rng):
    """An id is the path without the extension, in both."""
    folder = tmp_path / "set"
    (folder / "sub").mkdir(parents=True)
    for name in ("b.png", "a.jpg", "sub/c.webp"):
        Image.fromarray(picture(rng, 8, 8)).save(folder / name)
    (folder / "notes.txt").write_text("no image")
    (folder / ".hidden.png").write_text("no image")
    archive = tmp_path / "set.zip"
    with zipfile.ZipFile(archive, "w") as opened:
        for file in folder.rglob("*.*"):
            opened.write(file, file.relative_to(folder))
    one, other = open_images(folder), open_images(archive)
    assert one.ids == other.ids == ("a", "b", "sub/c")
    for k in range(3):
        np.testing.assert_array_equal(one.decode(k), other.decode(k))
    sent = pickle.loads(pickle.dumps(other))
    np.testing.assert_array_equal(sent.decode(2), one.decode(2))


def test_duplicate_image_id_is_an_error(tmp_path):
    """Two files of one id would overwrite each other's row."""
    for name in ("a.png", "a.jpg"):
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    with pytest.raises(ValueError, match=r"'a': a\.jpg and a\.png"):
        open_images(tmp_path)


@pytest.mark.parametrize("name", ["../evil.png", "/evil.png", "a/../../evil.png", "C:\\evil.png"])
def test_zip_that_leaves_its_folder_is_an_error(tmp_path, name):
    """Unpacking such a zip writes over files elsewhere."""
    archive = tmp_path / "set.zip"
    with zipfile.ZipFile(archive, "w") as opened:
        opened.writestr(name, b"x")
    with pytest.raises(ValueError, match="must stay inside it"):
        open_images(archive)


def test_missing_or_empty_source_is_an_error(tmp_path):
    """A typing error in the path must not end as an empty store."""
    with pytest.raises(FileNotFoundError, match="nowhere"):
        open_images(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="holds no images"):
        open_images(tmp_path)
    (tmp_path / "file.zip").write_text("no zip")
    with pytest.raises(ValueError, match="is neither"):
        open_images(tmp_path / "file.zip")


def test_ids_without_their_common_folder(tmp_path):
    """Zips often hold one top folder that the label file does not know."""
    (tmp_path / "top").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "top/a.png")
    source = open_images(tmp_path)
    assert source.common_folder == "top"
    assert source.without_folder("top").ids == ("a",)
    with pytest.raises(ValueError, match="not every image"):
        source.without_folder("other")
