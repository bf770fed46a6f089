"""One call predicts whatever an image comes as, under the model's own preprocessing."""

from __future__ import annotations

import copy
import csv
import io
import pickle
import threading

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import transferkit as tk
from transferkit import inference
from transferkit.errors import ArgumentError, DataError, ImageDecodeError
from transferkit.predictor import predictions_csv

CLASSES = [f"class{number}" for number in range(7)]


@pytest.fixture
def predictor(device):
    model = tk.load_backbone("mini", weights=None)
    tk.replace_head(model, 7, classes=CLASSES)
    execution = tk.resolve_execution(model, device=device, precision="fp32", decode="exact")
    return tk.Predictor(model, execution=execution)


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)


@pytest.fixture
def path(image, tmp_path):
    Image.fromarray(image).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def same(first, second):
    assert [entry["label"] for entry in first] == [entry["label"] for entry in second]
    scores = [entry["score"] for entry in second]
    assert [entry["score"] for entry in first] == pytest.approx(scores, abs=1e-6)


def test_scores_are_the_models_probabilities(predictor, image, device):
    prediction = predictor(image)
    inputs = predictor.preprocessing(Image.fromarray(image))[None].to(device)
    with torch.no_grad():
        expected = predictor.model(inputs).softmax(1)[0].cpu()
    order = expected.argsort(descending=True)[:5]
    same(prediction, [{"label": CLASSES[i], "score": float(expected[i])} for i in order.tolist()])


def test_an_image_may_come_in_any_form(predictor, image, path):
    expected = predictor(image)
    tensor = torch.from_numpy(image).permute(2, 0, 1)
    for form in (
        path,
        str(path),
        path.read_bytes(),
        bytearray(path.read_bytes()),
        Image.fromarray(image),
        tensor,
        image / 255,
    ):
        same(predictor(form), expected)


def test_many_images_give_a_list_for_each(predictor, image, path):
    expected = predictor(image)
    for form in ([path, image], path.parent, image[None], torch.from_numpy(image).permute(2, 0, 1)[None]):
        for prediction in predictor(form):
            same(prediction, expected)
    assert len(predictor([path, image])) == 2


def test_a_folder_is_read_in_sorted_order_with_its_sub_folders(predictor, tmp_path):
    (tmp_path / "sub").mkdir()
    colors = {"b.png": 200, "a.png": 10, "sub/c.png": 90}
    for name, value in colors.items():
        Image.fromarray(np.full((32, 32, 3), value, dtype=np.uint8)).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    expected = [predictor(tmp_path / name) for name in ("a.png", "b.png", "sub/c.png")]
    for prediction, other in zip(predictor(tmp_path), expected, strict=True):
        same(prediction, other)


@pytest.mark.parametrize(("top_k", "expected"), [(1, 1), (3, 3), (100, 7)])
def test_top_k_is_at_most_the_number_of_classes(predictor, image, top_k, expected):
    prediction = predictor(image, top_k=top_k)
    scores = [entry["score"] for entry in prediction]
    assert len(prediction) == expected
    assert scores == sorted(scores, reverse=True)


def test_batches_change_nothing(predictor, device):
    images = np.random.default_rng(1).integers(0, 256, (11, 32, 32, 3), dtype=np.uint8)
    small = tk.Predictor(predictor.model, device=device, precision="fp32", batch_size=3)
    torch.testing.assert_close(small.probabilities(list(images)), predictor.probabilities(list(images)))


def test_the_number_of_threads_changes_nothing(predictor, device, tmp_path):
    images = np.random.default_rng(2).integers(0, 256, (9, 32, 32, 3), dtype=np.uint8)
    paths = [tmp_path / f"{index}.png" for index in range(9)]
    for image, file in zip(images, paths, strict=True):
        Image.fromarray(image).save(file)
    expected = predictor.probabilities(list(images))
    for workers in (0, 1, 4):
        threaded = tk.Predictor(predictor.model, device=device, precision="fp32", workers=workers)
        torch.testing.assert_close(threaded.probabilities(paths), expected)


def test_images_are_decoded_side_by_side(predictor, device, image, monkeypatch):
    # Each of the two waits until the other is being decoded as well.
    both = threading.Barrier(2, timeout=30)
    pixels = predictor.preprocessing.pixels

    def wait(preprocessing, source):
        both.wait()
        return pixels(source)

    monkeypatch.setattr(tk.Preprocessing, "pixels", wait)
    threaded = tk.Predictor(predictor.model, device=device, precision="fp32", workers=2)
    assert len(threaded([image, image])) == 2


def test_a_negative_number_of_threads_is_refused(predictor):
    with pytest.raises(
        ArgumentError, match="The 'workers' parameter of Predictor must be an int of at least 0"
    ):
        tk.Predictor(predictor.model, workers=-1)


def test_many_means_at_least_one(predictor):
    with pytest.raises(DataError, match="the list is empty"):
        predictor.predict_many([])


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda each: pickle.loads(pickle.dumps(each))])
def test_a_copy_predicts_the_same_once_the_model_runs_in_its_fast_form(copied, monkeypatch):
    monkeypatch.setattr(inference, "_FOLDING_PAYS", 0)
    convolutions = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 1)
    network = nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(144, 2))
    model = tk.attach_spec(network, head="5", preprocessing=tk.Preprocessing(size=8))
    predictor = tk.Predictor(model, device="cpu", batch_size=2, precision="fp32")
    images = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), dtype=np.uint8)
    expected = predictor(list(images))
    assert predictor._fast is not None
    assert str(predictor._fast.form) == "fp32, folded, packed"
    assert copied(predictor)(list(images)) == expected


def test_it_loads_from_a_folder(predictor, image, tmp_path):
    tk.save_model(predictor.model, tmp_path / "model")
    for source in (tmp_path, tmp_path / "model", str(tmp_path)):
        same(tk.Predictor.load(source, execution=predictor.execution)(image), predictor(image))


@pytest.mark.parametrize(
    ("bad", "error", "message"),
    [
        ("nowhere.jpg", DataError, r"^There is no image or folder at nowhere\.jpg\.$"),
        ([], DataError, "the list is empty"),
        (np.zeros((2, 2, 3)) + 7, ArgumentError, r"must be uint8, or floats in \[0, 1\]"),
        (np.zeros((2, 2, 2, 2, 2)), ArgumentError, r"must be an array \[H, W, 3\] or \[N, H, W, 3\]"),
        (torch.zeros(5), ArgumentError, r"must be a tensor \[3, H, W\] or \[N, 3, H, W\]"),
    ],
)
def test_what_is_no_image_is_refused(predictor, bad, error, message):
    with pytest.raises(error, match=message):
        predictor(bad)


def test_a_text_file_named_jpg_is_named(predictor, tmp_path):
    (tmp_path / "fake.jpg").write_text("hello")
    with pytest.raises(ImageDecodeError, match=r"fake\.jpg"):
        predictor(tmp_path / "fake.jpg")


@pytest.fixture
def broken(tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"")
    return tmp_path / "broken.jpg"


@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_what_is_skipped_has_an_empty_list_in_its_place(predictor, image, broken, batch_size):
    skipping = tk.Predictor(
        predictor.model, execution=predictor.execution, on_error="skip", batch_size=batch_size
    )
    images = [image, broken, image[::-1], b"no image", broken]
    with pytest.warns(UserWarning, match="No labels for 3 images") as warned:
        predictions = skipping(images)
    assert [bool(prediction) for prediction in predictions] == [True, False, True, False, False]
    same(predictions[0], predictor(image))
    same(predictions[2], predictor(image[::-1]))
    (warning,) = warned
    assert str(warning.message) == (
        f"No labels for 3 images ('{broken}', 'image 3', '{broken}') that cannot be decoded "
        "(the first: it is empty)."
    )
    with pytest.warns(UserWarning, match="No labels"):
        rows = skipping.probabilities(images)
    assert rows.isnan().all(dim=1).tolist() == [False, True, False, True, True]
    torch.testing.assert_close(rows[[0, 2]], predictor.probabilities([image, image[::-1]]))


def test_all_may_be_skipped(predictor, broken):
    skipping = tk.Predictor(predictor.model, execution=predictor.execution, on_error="skip")
    with pytest.warns(UserWarning, match="No labels for 1 image "):
        assert skipping(broken) == []
    with pytest.warns(UserWarning, match="No labels for 2 images "):
        assert skipping([broken, broken], top_k=3) == [[], []]
    with (
        pytest.warns(UserWarning, match="No labels"),
        pytest.raises(DataError, match="no image can be decoded"),
    ):
        skipping.probabilities([broken])


def test_a_path_that_is_not_there_is_never_skipped(predictor, image):
    skipping = tk.Predictor(predictor.model, execution=predictor.execution, on_error="skip")
    with pytest.raises(DataError, match=r"no image or folder at gone\.jpg"):
        skipping([image, "gone.jpg"])
    with pytest.raises(ArgumentError, match="must be one of 'raise', 'skip'"):
        tk.Predictor(predictor.model, on_error="ignore")


def test_an_empty_folder_is_refused(predictor, tmp_path):
    with pytest.raises(DataError, match="holds no image"):
        predictor(tmp_path)


def test_a_model_without_a_spec_is_refused():
    with pytest.raises(ArgumentError, match="has no spec; give it one with"):
        tk.Predictor(torch.nn.Linear(2, 2))


def test_labels_are_numbers_where_names_are_unknown(image):
    model = tk.load_backbone("mini", weights=None, num_classes=3)
    assert {entry["label"] for entry in tk.Predictor(model, device="cpu")(image)} == {"0", "1", "2"}


def test_the_table_reads_back(predictor, image):
    predictions = predictor([image, image], top_k=3)
    rows = list(csv.DictReader(io.StringIO(predictions_csv(["a,b.jpg", 'c"d.jpg'], predictions))))
    assert list(rows[0]) == ["path", "label", "score", "label_2", "score_2", "label_3", "score_3"]
    assert [row["path"] for row in rows] == ["a,b.jpg", 'c"d.jpg']
    assert rows[0]["label_2"] == predictions[0][1]["label"]
    assert float(rows[0]["score"]) == pytest.approx(predictions[0][0]["score"], abs=1e-6)


def test_the_table_has_a_row_for_an_image_without_labels(predictor, image):
    predictions = [*predictor([image], top_k=2), []]
    rows = list(csv.reader(io.StringIO(predictions_csv(["a.jpg", "broken.jpg"], predictions))))
    assert rows[0] == ["path", "label", "score", "label_2", "score_2"]
    assert rows[2] == ["broken.jpg", "", "", "", ""]
    assert predictions_csv(["broken.jpg"], [[]]) == "path,label,score\nbroken.jpg,,\n"
