"""What stands in the figures of images."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image

import transferkit as tk
from transferkit.errors import ArgumentError, DataError
from transferkit.evaluation.drawing import denormalized, thumbnail
from transferkit.evaluation.image_figures import (
    plot_grad_cam,
    plot_images,
    plot_mistakes,
    plot_predictions,
    plot_training_images,
)
from transferkit.seeding import stream

matplotlib = pytest.importorskip("matplotlib", reason="the figures need matplotlib")

GREY = np.full((8, 8, 3), 90, dtype=np.uint8)


def png(figure: object) -> Image.Image:
    buffer = BytesIO()
    figure.savefig(buffer, dpi=40)
    return Image.open(buffer)


def pixels_of(axes: object) -> np.ndarray:
    return np.asarray(axes.images[0].get_array())


def titles_of(figure: object) -> list[str]:
    return [axes.get_title() for axes in figure.axes]


def test_predictions_say_right_and_wrong_in_words_and_lines() -> None:
    images = [
        Image.new("L", (300, 500)),
        np.zeros((9, 8, 3), dtype=np.uint8),
        torch.zeros(3, 8, 8, dtype=torch.uint8),
    ]
    figure = plot_predictions(images, ["ant", "bee", "ant"], [0.97, 0.61, 0.5], ["ant", "ant", None])
    assert titles_of(figure) == ["✓ ant (97%)", "✗ bee (61%)\ntruth: ant", "ant (50%)"]
    right, wrong, unknown = (axes.spines["left"] for axes in figure.axes)
    assert right.get_linestyle() != wrong.get_linestyle()
    assert right.get_visible()
    assert not unknown.get_visible()
    assert figure.get_suptitle() == "Predictions"
    png(figure)


@pytest.mark.parametrize(("count", "most", "drawn"), [(1, 36, 1), (5, 36, 5), (50, 36, 36), (7, 4, 4)])
def test_a_grid_draws_the_first_images(count: int, most: int, drawn: int) -> None:
    images = [np.full((4, 4, 3), index, dtype=np.uint8) for index in range(count)]
    figure = plot_predictions(images, ["x"] * count, [1.0] * count, most=most)
    assert [pixels_of(axes)[0, 0, 0] for axes in figure.axes] == list(range(drawn))
    assert (f"(the first {drawn} of {count})" in figure.get_suptitle()) == (drawn < count)


@pytest.mark.parametrize("count", [1, 2, 7, 36])
def test_nothing_overlaps_or_is_cut_off_in_a_grid(count: int) -> None:
    labels = ["W" * 40] * count  # the widest letter
    figure = plot_predictions([GREY] * count, labels, [1.0] * count, ["M" * 40] * count)
    figure.draw_without_rendering()
    page = figure.bbox
    boxes = [figure._suptitle.get_window_extent()]
    for axes in figure.axes:
        boxes += [axes.get_window_extent(), axes.title.get_window_extent()]
    for number, box in enumerate(boxes):
        assert page.x0 <= box.x0, number
        assert box.x1 <= page.x1, number
        assert page.y0 <= box.y0, number
        assert box.y1 <= page.y1, number
        assert not any(box.shrunk(0.98, 0.98).overlaps(other) for other in boxes[number + 1 :])


def test_a_grid_leaves_the_images_as_they_are() -> None:
    image = Image.new("RGB", (600, 400))
    plot_predictions([image], ["x"], [1.0])
    assert image.size == (600, 400)


def test_names_are_drawn_as_they_are() -> None:
    png(plot_predictions([GREY], ["cost $x_{ of"], [0.5], ["_hidden $"], title="$x_{"))


def test_training_images_are_those_that_the_run_sees(tiny_part) -> None:
    part = tiny_part(24)
    size = tk.Preprocessing(size=8)
    light = tk.augmentation("light", size)
    figure = plot_training_images(part, size, light, seed=3, epoch=2, most=10)
    order = stream(3, "order", 2).permutation(24)[:10]
    pixels = torch.stack([size.pixels(part[index][0]) for index in order])
    varied = light.apply(pixels, light.draw(3, 2, order)).permute(0, 2, 3, 1).numpy()
    for axes, image, index in zip(figure.axes, varied, order, strict=True):
        np.testing.assert_array_equal(pixels_of(axes), image)
        assert axes.get_title() == part.classes[part.targets[index]]
    assert "augmented (light), 8 x 8 px" in figure.get_suptitle()
    # The last batch may not be of one image, so a batch of 23 is one of 24; no more are drawn than asked for.
    assert len(plot_training_images(part, size, most=23).axes) == 23
    assert "plain" in plot_training_images(part, size).get_suptitle()


def test_pixels_come_back_from_what_a_model_takes() -> None:
    pixels = torch.arange(256, dtype=torch.uint8).view(1, 16, 16).expand(3, 16, 16)
    for mean, std in (((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)), ((0.5, 0.5, 0.5), (0.1, 1.0, 2.0))):
        record = tk.Preprocessing(size=16, mean=mean, std=std)
        assert torch.equal(denormalized(record.normalize(pixels), record), pixels)


def test_the_surest_mistakes_come_first(tiny_part) -> None:
    part = tiny_part(4)
    logits = torch.tensor([[2.0, 0.0], [1.0, 0.0], [0.0, 3.0], [5.0, 0.0]])
    report = tk.Report.from_logits(logits, torch.from_numpy(part.targets), part.classes, split="val")
    figure = plot_mistakes(report, part)
    shown = [f"({value:.0%})" for value in logits.softmax(dim=1).amax(dim=1).tolist()]
    assert titles_of(figure) == [
        f"✗ class0 {shown[3]}\ntruth: class1",
        f"✗ class1 {shown[2]}\ntruth: class0",
        f"✗ class0 {shown[1]}\ntruth: class1",
    ]
    for axes, index in zip(figure.axes, (3, 2, 1), strict=True):
        np.testing.assert_array_equal(pixels_of(axes), np.asarray(part[index][0]))
    assert figure.get_suptitle() == "Surest mistakes in val: 3 of 3"
    assert plot_mistakes(report, part, most=1).get_suptitle() == "Surest mistakes in val: 1 of 3"
    with pytest.raises(ArgumentError, match="'part' parameter of plot_mistakes must be the 4 images of the"):
        plot_mistakes(report, part.take([0, 1]))
    right = tk.Report.from_logits(torch.eye(2), torch.tensor([0, 1]), ["ant", "bee"], split="val")
    with pytest.raises(DataError, match="every image in 'val' was predicted right"):
        plot_mistakes(right, part.take([0, 1]))


def test_a_map_is_drawn_beside_its_image() -> None:
    heat = torch.zeros(1, 8, 8)
    heat[0, :, 4:] = 1.0
    figure = plot_grad_cam([GREY], heat, ["ant"], [0.9], ["bee"])
    (axes,) = figure.axes
    pixels = pixels_of(axes)
    np.testing.assert_array_equal(pixels[:, :8], GREY)
    covered = pixels[:, -8:]
    low, high = (255 * np.array(matplotlib.colormaps["viridis"](value)[:3]) for value in (0.0, 1.0))
    np.testing.assert_allclose(covered[0, 0], 0.55 * low + 0.45 * 90, atol=1)
    np.testing.assert_allclose(covered[0, 7], 0.55 * high + 0.45 * 90, atol=1)
    assert axes.get_title() == "✗ ant (90%)\ntruth: bee"
    png(figure)


def test_images_of_any_kind_become_small_arrays() -> None:
    assert thumbnail(Image.new("L", (1000, 500)), "x").shape == (128, 256, 3)
    assert thumbnail(torch.zeros(3, 4, 6, dtype=torch.uint8), "x").shape == (4, 6, 3)


def test_wrong_arguments() -> None:
    with pytest.raises(DataError, match="nothing to draw for plot_predictions: no images were given"):
        plot_predictions([], [], [])
    with pytest.raises(ArgumentError, match="'scores' parameter of plot_predictions must be of length 1"):
        plot_predictions([GREY], ["x"], [])
    with pytest.raises(ArgumentError, match="'images' parameter of plot_predictions must be PIL images"):
        plot_predictions([torch.zeros(3, 4, 4)], ["x"], [1.0])
    with pytest.raises(ArgumentError, match="'labels' parameter of plot_images must be of length 1"):
        plot_images([GREY], [])
    with pytest.raises(
        ArgumentError, match="'columns' parameter of plot_images must be an int of at least 1"
    ):
        plot_images([GREY], ["x"], columns=0)
    with pytest.raises(ArgumentError, match="'maps' parameter of plot_grad_cam must be of length 1"):
        plot_grad_cam([GREY], torch.zeros(2, 8, 8), ["x"], [1.0])
    empty = tk.Part([], np.zeros(0, dtype=np.int64), ["x"], name="train")
    with pytest.raises(DataError, match="no images to draw: the 'train' part is empty"):
        plot_training_images(empty, tk.Preprocessing(size=8))


@pytest.mark.parametrize("count", [1, 2, 8])
def test_the_heading_of_the_maps_is_whole(count: int) -> None:
    figure = plot_grad_cam([GREY] * count, torch.ones(count, 8, 8), ["ant"] * count, [0.9] * count)
    figure.draw_without_rendering()
    heading = figure._suptitle.get_window_extent()
    assert 0 <= heading.x0 < heading.x1 <= figure.bbox.x1
    assert heading.y1 <= figure.bbox.y1
    assert figure.get_suptitle().replace("\n", " ").endswith("for the predicted label (yellow: most)")
    assert not any(heading.overlaps(axes.title.get_window_extent()) for axes in figure.axes)


def test_a_map_without_evidence_says_so() -> None:
    image = np.zeros((8, 8, 3), dtype=np.uint8)
    image[..., 0] = 90
    maps = torch.stack([torch.zeros(8, 8), torch.eye(8)])
    empty, full = plot_grad_cam([image, image], maps, ["ant", "bee"], [0.9, 0.8]).axes
    assert [text.get_text() for text in empty.texts] == ["no evidence"]
    assert not full.texts
    np.testing.assert_array_equal(pixels_of(empty)[:, -8:], 30)


def test_a_map_is_not_stretched_over_a_whole_photo():
    photo = Image.new("RGB", (60, 40))
    with pytest.raises(ArgumentError) as error:
        plot_grad_cam([photo], torch.ones(1, 32, 32), ["ant"], [0.9])
    assert str(error.value).startswith(
        "The 'images' parameter of plot_grad_cam must be what the model saw, as preprocessing.pixels(image) "
    )
    # A large one is drawn smaller, which rounds its sides.
    plot_grad_cam([photo.resize((601, 401))], torch.ones(1, 401, 601), ["ant"], [0.9])


def test_an_augmentation_may_be_named():
    part = tk.Part(np.zeros((4, 8, 8, 3), dtype=np.uint8), [0, 1] * 2, ["ant", "bee"])
    figure = plot_training_images(part, tk.Preprocessing(size=8), "light")
    assert "augmented (light)" in figure.get_suptitle()
