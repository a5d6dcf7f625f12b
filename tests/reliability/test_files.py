"""Files from strangers: tables and images as people have them, and some that mean harm."""

import contextlib
import io
import os
import stat
import struct
import time
import tracemalloc
import zipfile

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from typer.testing import CliRunner

from cnn_extract.images import ImageError, decode_image, open_images
from cnn_extract.run import match_ids
from cnn_extract.tables import read_labels, read_metadata
from features._console import Reporter
from features.importing import read_predictions
from features.schema import Stack
from features.store import FeatureStore
from stacker import write_submission
from stacker.cli import app


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


def npy(shape, dtype="|u1"):
    """Give the header of an array without its values."""
    head = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    head += b" " * (63 - (len(head) + 10) % 64) + b"\n"
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(head)) + head


def bundle():
    file = io.BytesIO()
    np.savez(file, a=np.ones(3))
    return file.getvalue()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (npy((10**6, 10**6, 3)), "asks for 3,000,000,000,000 bytes"),
        (npy((2, 2, 10**9)), "asks for 4,000,000,000 bytes"),
        (npy((-1, -5, 3)), "asks for 15 bytes"),
        (b"\x93NUMPY\1\0\x10\0((((((((((((((((", "cannot read"),
        (bundle(), "magic string"),
    ],
    ids=["terabytes", "gigabytes", "negative", "no header", "a bundle"],
)
def test_array_images_that_lie_about_themselves_name_their_file(data, message):
    """The machine runs out of memory, or the run ends with numpy's and tokenize's errors."""
    with pytest.raises(ImageError, match=message) as found:
        decode_image(data, "bad name.npy")
    assert "bad name.npy" in str(found.value)


def test_no_file_is_handed_to_another_program(tmp_path, monkeypatch):
    """Pillow gives PostScript to Ghostscript, whatever the file's extension."""
    from stacker._gallery import thumbnail_uri

    program, ran = tmp_path / "gs", tmp_path / "ran"
    program.write_text(f"#!/bin/sh\ntouch {ran}\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr("PIL.EpsImagePlugin.gs_binary", None)
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n"
    with pytest.raises(ImageError, match=r"cannot read image x\.png"):
        decode_image(eps, "x.png")
    assert thumbnail_uri(eps) == ""
    assert not ran.exists()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("damage", [b"garbage!garbage!", b"II*\0\xff\xff\xff\xff", b""])
def test_damaged_exif_costs_no_picture(kind, damage):
    """A camera's note that cannot be read stops a run, though every viewer shows the picture."""
    file = io.BytesIO()
    Image.new("RGB", (8, 6), "red").save(file, kind, exif=b"Exif\0\0" + damage)
    assert decode_image(file.getvalue(), "x").shape == (6, 8, 3)


@pytest.mark.parametrize("orientation", range(1, 10))
def test_exif_turns_as_pillow_turns(orientation):
    """One of the eight orientations lies on its side; the ninth is none."""
    from PIL import ImageOps

    image, file = Image.fromarray(np.arange(24, dtype=np.uint8).reshape(4, 6)), io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(file, "PNG", exif=exif)
    with Image.open(file) as opened:
        expected = np.asarray(ImageOps.exif_transpose(opened))
    np.testing.assert_array_equal(decode_image(file.getvalue(), "x.png")[:, :, 0], expected)


def test_a_palette_with_half_transparent_colours_is_laid_on_white():
    """PNG palettes have an opacity for each colour, GIFs one colour that is nothing."""
    image, file = Image.new("P", (3, 1)), io.BytesIO()
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    image.putdata([0, 1, 2])
    image.save(file, "PNG", transparency=bytes([255, 0, 128]))
    expected = [[[10, 20, 30], [255, 255, 255], [162, 167, 172]]]
    assert decode_image(file.getvalue(), "x.png").tolist() == expected


def test_an_animation_cut_short_after_its_first_frame_is_read(rng):
    """Frames that nobody looks at stop the run."""
    first, second = (
        Image.fromarray(rng.integers(0, 256, (9, 9, 3)).astype(np.uint8)) for _ in range(2)
    )
    for kind in ("GIF", "PNG"):
        file = io.BytesIO()
        first.save(file, kind, save_all=True, append_images=[second])
        assert decode_image(file.getvalue()[:-30], f"x.{kind}").shape == (9, 9, 3)


def test_damaged_avif_and_lzma_name_their_file(tmp_path):
    """Two libraries with errors of their own end the run with a traceback."""
    Image.init()
    if "AVIF" in Image.SAVE:
        file = io.BytesIO()
        Image.new("RGB", (8, 8)).save(file, "AVIF")
        for place in range(len(file.getvalue())):
            data = bytearray(file.getvalue())
            data[place] ^= 0xFF
            with contextlib.suppress(ImageError):
                decode_image(bytes(data), "x.avif")
    with zipfile.ZipFile(tmp_path / "z.zip", "w", zipfile.ZIP_LZMA) as made:
        made.writestr("a.png", os.urandom(3000))
    data = bytearray((tmp_path / "z.zip").read_bytes())
    data[60] ^= 0x5A
    (tmp_path / "z.zip").write_bytes(data)
    with pytest.raises(ImageError, match=r"cannot read image a\.png"):
        open_images(tmp_path / "z.zip").decode(0)


def test_a_damaged_zip_directory_is_one_clear_error(tmp_path, rng):
    """`zipfile` has half a dozen errors of its own, none with the archive's name."""
    with zipfile.ZipFile(tmp_path / "good.zip", "w") as made:
        made.writestr("a.png", png())
    good, path = (tmp_path / "good.zip").read_bytes(), tmp_path / "bad.zip"
    start = good.find(b"PK\1\2")
    for _ in range(400):
        data = bytearray(good)
        data[rng.integers(start, len(data))] = rng.integers(256)
        path.write_bytes(data)
        try:
            open_images(path).decode(0)
        except ValueError as error:
            assert "bad.zip" in str(error) or str(error).startswith("cannot read image")  # noqa: PT017


def test_a_link_inside_an_archive_is_no_image(tmp_path):
    """A zip's link is followed, and the file that it names becomes an image."""
    link = zipfile.ZipInfo("a.png")
    link.create_system, link.external_attr = 3, 0o120777 << 16
    (tmp_path / "secret.png").write_bytes(png())
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as made:
        made.writestr(link, str(tmp_path / "secret.png"))
    with pytest.raises(ImageError, match=r"a\.png: it is no image"):
        open_images(tmp_path / "z.zip").decode(0)


@pytest.mark.skipif(os.name == "nt", reason="links and names of a POSIX system")
def test_links_that_lose_images_are_refused_by_name(tmp_path):
    """Images behind a link to a folder, or to nothing, are left out without a word."""
    folder, outside = tmp_path / "images", tmp_path / "outside"
    for place in (folder, outside):
        place.mkdir()
        (place / "a.png").write_bytes(png())
    (folder / "more").symlink_to(outside)
    with pytest.raises(ValueError, match=r"links to folders are not followed.*'more'"):
        open_images(folder)
    (folder / "more").rename(folder / ".hidden")
    assert open_images(folder).ids == ("a",)
    (folder / "gone.png").symlink_to(tmp_path / "nowhere.png")
    with pytest.raises(ValueError, match=r"holds a link that leaves it: 'gone\.png'"):
        open_images(folder)
    (folder / "gone.png").unlink()
    (folder / "loop.png").symlink_to("loop.png")
    with pytest.raises(ValueError, match=r"holds a link that leaves it: 'loop\.png'"):
        open_images(folder)


@pytest.mark.skipif(os.name == "nt", reason="names of a POSIX system")
def test_a_file_name_that_is_no_text_is_refused_by_name(tmp_path):
    """The store is half written when the name cannot be."""
    try:
        (tmp_path / os.fsdecode(b"\xff.png")).write_bytes(png())
    except OSError:
        pytest.skip("a file system of text names")
    with pytest.raises(ValueError, match=r"file names must be UTF-8; .*'\\udcff\.png'"):
        open_images(tmp_path)


def test_a_poster_of_50000_pixels_takes_little_memory_beside_its_own():
    """A dozen copies of the largest image, in each worker, take the machine down."""
    from cnn_extract.stats import image_statistics
    from cnn_extract.transforms import model_input

    pixels = np.zeros((50_000, 400, 3), np.uint8)
    tracemalloc.start()
    try:
        assert np.isfinite(image_statistics(pixels)).all()
        assert model_input(pixels, 32).shape == (32, 32, 3)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 3 * pixels.nbytes


def test_statistics_in_blocks_are_those_of_the_whole(rng, monkeypatch):
    """The last block counts for too much, or not at all."""
    from cnn_extract import stats

    for kind, most in ((np.uint8, 256), (np.uint16, 65_536)):
        pixels = rng.integers(0, most, (19, 23, 3)).astype(kind)
        whole = stats.image_statistics(pixels)
        with monkeypatch.context() as patch:
            patch.setattr(stats, "BLOCK", 50)
            np.testing.assert_allclose(stats.image_statistics(pixels), whole, rtol=1e-6)


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


CELLS = ["=1+1", "@SUM(A1)", "+3", "-2", "line\nend", "car\rriage", 'q"uote', "a,b", "a;b", "\ttab"]


def test_names_go_out_as_they_came_in(tmp_path):
    """Formulas are quoted away, line ends part a row: the predictions are of other images."""
    path = write_submission(tmp_path / "p.csv", [["=cmd|'/C_calc'!A0"]] * 10, image_ids=CELLS)
    again = read_labels(path)
    assert list(again.image_ids) == CELLS
    assert set(again.lists) == {("=cmd|'/C_calc'!A0",)}
    wide = np.full((10, 2), 0.5, dtype=np.float32)
    path = write_submission(
        tmp_path / "w.csv", wide, image_ids=CELLS, classes=["=1+1", "b\nc"], form="wide"
    )
    frame = pd.DataFrame(wide, pd.Index(CELLS, name="image_id"), ["=1+1", "b\nc"])
    pd.testing.assert_frame_equal(next(iter(read_predictions(path).values())), frame)


@pytest.mark.parametrize("name", ["b c", "b\nc", "b\tc", "b\u2003c"])
def test_a_class_with_any_space_is_not_written_as_two(tmp_path, name):
    """Readers part labels at every kind of space."""
    with pytest.raises(ValueError, match="holds the separator"):
        write_submission(tmp_path / "p.csv", [[name]], image_ids=["i"])


@pytest.mark.parametrize("content", [b"\xff\xfei\0d\0", b"", b"id,labels\na,b,c\nd\n"])
def test_a_sample_submission_that_cannot_be_read_is_named(tmp_path, content):
    """The message was that of a codec, without the file."""
    (tmp_path / "sample.csv").write_bytes(content)
    with pytest.raises(ValueError, match=r"sample\.csv"):
        write_submission(tmp_path / "p.csv", [["b"]], image_ids=["a"], like=tmp_path / "sample.csv")


def test_names_that_no_file_can_hold_are_refused_by_name(tmp_path):
    """A store was begun, and failed with the message of a codec."""
    given = {"image_ids": ["i"], "classes": ["a"], "probabilities": {"m": [[0.5]]}}
    for what, key in (("image id", "image_ids"), ("class name", "classes")):
        bad = {**given, key: ["\udcff.png"]}
        with pytest.raises(ValueError, match=rf"a {what} must be text .* '\\udcff\.png' is not"):
            FeatureStore.from_arrays(tmp_path / "s", **bad)
    with pytest.raises(ValueError, match="must be text"):
        Stack({"m": [[0.5]]}, image_ids=["\udcff"])
    assert list(tmp_path.iterdir()) == []


def test_names_with_line_ends_and_escapes_stay_on_one_line_of_the_screen(tmp_path):
    """A file's name clears the terminal, or writes a line that looks like ours."""
    from cnn_extract.cli import app as extract

    name = "a\x1b[2J\nrefused: all is well\x9b.png"
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as made:
        made.writestr(name, b"no image")
    done = CliRunner().invoke(
        extract, ["stats", str(tmp_path / "z.zip"), "--out", str(tmp_path / "o.csv")]
    )
    assert done.exit_code == 2
    assert len(done.stderr.splitlines()) == 1
    assert r"a\x1b[2J\nrefused: all is well\x9b.png" in done.stderr
    assert "\x1b" not in done.stderr


def test_predictions_that_ask_for_all_memory_are_named(tmp_path):
    """A header that lies, and the message does not say of which file."""
    (tmp_path / "p.npy").write_bytes(npy((10**7, 10**6), "<f4"))
    with pytest.raises(MemoryError, match=r"p\.npy does not fit into memory, or is damaged"):
        read_predictions(tmp_path / "p.npy")
    (tmp_path / "l.csv").write_text("image_id,labels\na,x\n")
    given = [str(tmp_path / "p.npy"), "--labels", str(tmp_path / "l.csv")]
    done = CliRunner().invoke(app, ["import", *given, "--out", str(tmp_path / "s")])
    assert done.exit_code == 1
    assert "failed: " in done.stderr
    assert "p.npy" in done.stderr
