"""Pictures for the report: found by id in a folder or zip, whatever lies there."""

import zipfile

import pytest

from stacker._image_files import image_reader

PNG = b"\x89PNG\r\n\x1a\n"


def packed(path, members):
    """A zip of names and contents."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as bundle:
        for name, content in members.items():
            bundle.writestr(name, content)
    return path


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_pictures_are_found_by_their_id(tmp_path, kind):
    """An id is the path without the extension; unknown ones have no picture."""
    place = tmp_path / "images"
    if kind == "folder":
        (place / "a").mkdir(parents=True)
        (place / "a" / "b.png").write_bytes(PNG)
    else:
        packed(place, {"a/b.png": PNG})
    read = image_reader(place, ["a/b", "c"])
    assert (read("a/b"), read("c")) == (PNG, None)


def test_places_without_the_images_are_refused(tmp_path):
    """A table ended in a traceback, another folder in a page without pictures."""
    with pytest.raises(FileNotFoundError, match="there is no folder or zip of images at"):
        image_reader(tmp_path / "nowhere")
    (tmp_path / "labels.csv").write_text("image_id,labels\n")
    with pytest.raises(ValueError, match=r"labels.csv is no zip of images .*Give the folder"):
        image_reader(tmp_path / "labels.csv")
    match = r"holds none of the 2 images, whose ids are 'i', 'j'; it holds 'labels'"
    with pytest.raises(ValueError, match=match):
        image_reader(tmp_path, ["i", "j"])


def test_a_bomb_or_a_damaged_member_is_refused_by_name(tmp_path):
    """A member of a gigabyte was unpacked into memory."""
    bomb = packed(tmp_path / "bomb.zip", {"i.png": PNG + bytes(40_000_000)})
    with pytest.raises(ValueError, match=r"'i.png' in .*bomb.zip unpacks to 40,000,008 bytes"):
        image_reader(bomb, ["i"])("i")
    whole = packed(tmp_path / "whole.zip", {"i.png": bytes(range(256)) * 10})
    content = bytearray(whole.read_bytes())
    content[50] ^= 255
    (tmp_path / "damaged.zip").write_bytes(content)
    with pytest.raises(ValueError, match=r"'i.png' in .*damaged.zip cannot be read"):
        image_reader(tmp_path / "damaged.zip", ["i"])("i")


def test_a_link_that_leaves_the_folder_is_no_picture(tmp_path):
    """A stranger's folder put any picture of the user into the page."""
    (tmp_path / "private.png").write_bytes(PNG)
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "i.png").symlink_to(tmp_path / "private.png")
    assert image_reader(tmp_path / "images", ["i"])("i") is None
