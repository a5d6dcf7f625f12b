"""Files from strangers: tables and images as people have them, and some that mean harm."""

import io
import time
import zipfile

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from cnn_extract.images import ImageError, decode_image, open_images
from cnn_extract.run import match_ids
from cnn_extract.tables import read_labels, read_metadata
from features._console import Reporter
from features.store import FeatureStore


def png(width=4, height=3, mode="RGB", **options):
    file = io.BytesIO()
    Image.new(mode, (width, height), 7).save(file, "PNG", **options)
    return file.getvalue()


@pytest.mark.parametrize(
    "text",
    [
        "\ufeffimage_id,labels\na,x y\nb,\n",
        "image_id,labels\r\na,x y\r\nb,\r\n",
        '"image_id","labels"\n"a","x y"\n"b",""\n',
        "image_id,labels\n\na,x y\n\nb,\n\n",
        'image_id,labels,note\na,x y,"one, two"\nb,,\n',
    ],
    ids=["byte order mark", "CRLF", "quotes", "empty lines", "commas in quotes"],
)
def test_label_files_as_people_have_them(tmp_path, text):
    """A spreadsheet's file reads as other labels, or as labels of another image."""
    path = tmp_path / "labels.csv"
    path.write_bytes(text.encode())
    found = read_labels(path)
    assert (found.image_ids, found.lists) == (("a", "b"), (("x", "y"), ()))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image_id;labels\na;x y\n", "must have the columns .* semicolons"),
        ("image_id\tlabels\na\tx\n", "must have the columns .* tabs"),
        ("image_id,labels\na,x,z\nb,y\n", "no CSV file"),
        ("", "no CSV file"),
        ("image_id,labels\na,x\na,y\n", "name each image once.*'a'"),
        ("image_id,labels\n,x\n", "an image in every line"),
        ("image_id,labels\n../../etc/passwd,x\n", r"leaves .* '\.\./\.\./etc/passwd'"),
        ("image_id,labels\n/etc/passwd,x\n", "leaves .* '/etc/passwd'"),
    ],
    ids=["semicolons", "tabs", "more cells", "empty", "twice", "no id", "parent", "absolute"],
)
def test_label_files_that_cannot_be_read_say_what_to_do(tmp_path, text, message):
    """A wrong separator is reported as a missing column, a path as a missing image."""
    path = tmp_path / "labels.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_labels(path)


def test_a_cell_of_ten_megabytes_is_read(tmp_path):
    """A limit of some library ends the run, or memory does."""
    names = " ".join(f"l{k}" for k in range(1_000_000))
    (tmp_path / "labels.csv").write_text(f"image_id,labels\na,{names}\n")
    begun = time.monotonic()
    found = read_labels(tmp_path / "labels.csv")
    assert len(found.lists[0]) == 1_000_000
    assert time.monotonic() - begun < 30


def test_names_with_spaces_unicode_and_line_ends_survive(tmp_path):
    """An id is cut or joined, and its image gets another's labels."""
    ids = ["a b", "é", "emoji 🙂", "line\nend", 'comma,quote"', "=1+1", "NA", "nan"]
    labels = pd.DataFrame({"image_id": ids, "labels": ["x"] * len(ids)})
    labels.to_csv(tmp_path / "labels.csv", index=False)
    assert list(read_labels(tmp_path / "labels.csv").image_ids) == ids
    store = FeatureStore.from_arrays(
        tmp_path / "s", image_ids=ids, classes=["x"], probabilities={"=m\n": np.ones((8, 1))}
    )
    again = FeatureStore.open(store.path)
    assert again.image_ids.tolist() == ids
    assert again.models == ["=m\n"]


def test_a_folder_of_links_that_leave_it_is_refused(tmp_path):
    """A shared folder of images reads files of the one who opens it."""
    folder = tmp_path / "images"
    folder.mkdir()
    (tmp_path / "secret.png").write_bytes(png())
    (folder / "a.png").write_bytes(png())
    (folder / "b.png").symlink_to(folder / "a.png")
    assert open_images(folder).ids == ("a", "b")
    (folder / "c.png").symlink_to(tmp_path / "secret.png")
    with pytest.raises(ValueError, match=r"leaves .*'c\.png'"):
        open_images(folder)


def test_ids_with_dots_inside_are_no_way_out(tmp_path):
    """A file called 'a..b' is refused for nothing."""
    (tmp_path / "a..b.png").write_bytes(png())
    (tmp_path / "labels.csv").write_text("image_id,labels\na..b,x\n")
    labels = read_labels(tmp_path / "labels.csv")
    source = match_ids(open_images(tmp_path), labels, Reporter(quiet=True))
    assert source.ids == ("a..b",)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "no image"),
        (b"GIF89a", "no image|cannot read"),
        (png()[:40], "cannot read"),
        (png(50_000, 4_000, "1"), "exceeds limit"),
        (b"\xff\xd8\xff\xe1\xff\xffExif" + b"\xff" * 80, "cannot read"),
    ],
    ids=["zero bytes", "header alone", "cut short", "bomb", "corrupt Exif"],
)
def test_images_that_are_none_name_their_file(data, message):
    """One file of a million stops a night's run without its name."""
    with pytest.raises(ImageError, match=message) as found:
        decode_image(data, "bad name.jpg")
    assert "bad name.jpg" in str(found.value)


@pytest.mark.parametrize("size", [(1, 1), (50_000, 1), (1, 50_000)])
def test_images_of_one_pixel_and_of_very_long_sides_are_read(size):
    """A statistic or a crop divides by the side."""
    from cnn_extract.stats import image_statistics
    from cnn_extract.transforms import model_input

    pixels = decode_image(png(*size), "x.png")
    assert pixels.shape == (size[1], size[0], 3)
    assert np.isfinite(image_statistics(pixels)).all()
    assert model_input(pixels, 32).shape == (32, 32, 3)


def test_an_extension_that_lies_does_not_matter():
    """A PNG called .jpg, as scrapers leave it, is skipped."""
    assert decode_image(png(), "x.jpg").shape == (3, 4, 3)


def test_a_zip_bomb_is_refused(tmp_path):
    """Ten kilobytes unpack to gigabytes of memory."""
    with zipfile.ZipFile(tmp_path / "z.zip", "w", zipfile.ZIP_DEFLATED) as bundle:
        bundle.writestr("a.png", b"\0" * 600_000_000)
    begun = time.monotonic()
    with pytest.raises(ImageError, match=r"a\.png"):
        open_images(tmp_path / "z.zip").decode(0)
    assert time.monotonic() - begun < 10


def test_a_metadata_file_with_formula_cells_is_data(tmp_path):
    """A cell that a spreadsheet would run is changed on the way in."""
    (tmp_path / "m.csv").write_text("image_id,note\na,=cmd|' /C calc'!A0\n")
    assert read_metadata(tmp_path / "m.csv")["note"].tolist() == ["=cmd|' /C calc'!A0"]
