from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from nas.accuracy.images import PADDING, ImageFiles, fitted_size, letterbox, read_image
from nas.errors import DatasetError

_sides = st.integers(1, 300)


def test_letterbox__wide_image_lies_on_top_of_grey() -> None:
    image = np.full((50, 100, 3), 255, np.uint8)
    fitted = letterbox(image, (64, 64))
    assert (fitted[:32] == 255).all()
    assert (fitted[32:] == PADDING).all()


def test_letterbox__same_size_changes_nothing() -> None:
    image = np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8)
    np.testing.assert_array_equal(letterbox(image, (40, 30)), image)


def test_letterbox__reduction_averages_instead_of_skipping_pixels() -> None:
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 200
    inner = letterbox(stripes, (8, 8))[:, 1:-1]
    np.testing.assert_allclose(inner, 100, atol=4)


@given(size=st.tuples(_sides, _sides), into=st.tuples(_sides, _sides))
def test_fitted_size__fills_one_side_and_never_exceeds(
    size: tuple[int, int], into: tuple[int, int]
) -> None:
    height, width = fitted_size(size, into)
    assert 1 <= height <= into[0]
    assert 1 <= width <= into[1]
    assert height == into[0] or width == into[1]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"])
def test_read_image__any_mode_becomes_rgb(mode: str, tmp_path: Path) -> None:
    path = tmp_path / ("image.tif" if mode == "CMYK" else "image.png")
    Image.new(mode, (7, 5)).save(path)
    image = ImageFiles((path,))[0]
    assert image.shape == (5, 7, 3)
    assert image.dtype == np.uint8


def test_read_image__sixteen_bits_are_scaled_not_clipped(tmp_path: Path) -> None:
    levels = np.array([[0, 256 * 100, 256 * 200]], np.uint16)
    Image.fromarray(levels).save(tmp_path / "deep.png")
    assert read_image(tmp_path / "deep.png")[0, :, 0].tolist() == [0, 100, 200]


def test_read_image__turned_upright_by_its_exif_tag(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (20, 10)).save(tmp_path / "phone.jpg", exif=exif)
    assert read_image(tmp_path / "phone.jpg").shape == (20, 10, 3)


def test_read_image__damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and then nothing")
    with pytest.raises(DatasetError, match=r"broken\.png cannot be decoded"):
        read_image(tmp_path / "broken.png")
