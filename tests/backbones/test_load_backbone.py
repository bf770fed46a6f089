"""Weights in all their forms: by name, from files of others, with new heads and at new sizes."""

from __future__ import annotations

import hashlib
import http.client
import logging
import re
import shutil
import urllib.error

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torchvision import models
from torchvision.transforms import functional as F

from transferkit.backbones.load import load_backbone
from transferkit.backbones.preprocessing import Preprocessing
from transferkit.backbones.spec import spec_of
from transferkit.errors import (
    ArgumentError,
    CheckpointCorruptError,
    CheckpointError,
    DownloadError,
    OutputError,
    UnknownNameError,
    UnsafeCheckpointError,
    WeightsMismatchError,
)
from transferkit.heads import class_names

SMALL = "squeezenet1_1"


def reference(name, **arguments):
    """torchvision's own model, with random weights and the batch-norm statistics of some images."""
    model = models.get_model(name, weights=None, **arguments).eval()
    norms = [module.train() for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    if norms:  # otherwise the logits would hardly depend on the images
        with torch.no_grad():
            model(torch.rand(4, 3, 96, 96))
    return model.eval()


def as_in_2017(state):
    """The state dict of a DenseNet as torchvision's files have it."""
    pattern = re.compile(r"(denselayer\d+\.(?:norm|conv))([12])")
    kept = {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}
    return {pattern.sub(r"\1.\2", name): tensor for name, tensor in kept.items()}


def same_state(model, state, *, except_=()):
    own = model.state_dict()
    names = [name for name in own if not name.startswith(tuple(except_) or "\0")]
    return all(torch.equal(own[name], state[name]) for name in names)


@pytest.fixture
def server(tmp_path, monkeypatch):
    """What torch.hub downloads comes from here: ``server(state)`` sets it."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    source = tmp_path / "on-the-server.pth"
    fetched = []

    def download(url, destination, hash_prefix=None, progress=True):
        assert hash_prefix in url
        fetched.append(url)
        shutil.copy(source, destination)

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)

    def serve(state):
        torch.save(state, source)
        return fetched

    return serve


@pytest.fixture
def file(tmp_path):
    """Write a state dict of torchvision's SqueezeNet with 200 outputs, and return path and state."""
    state = reference(SMALL, num_classes=200).state_dict()
    path = tmp_path / "mine.pth"
    torch.save(state, path)
    return path, state


# --- by name


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("squeezenet1_1", {}),
        ("mnasnet0_5", {}),
        ("densenet121", {}),
        ("googlenet", {"aux_logits": True, "init_weights": True}),
        ("inception_v3", {"aux_logits": True, "init_weights": False}),
    ],
)
def test_default_weights_give_the_model_that_torchvision_gives(name, arguments, server, capsys):
    state = reference(name, **arguments).state_dict()
    if name == "densenet121":
        state = as_in_2017(state)
    fetched = server(state)
    model = load_backbone(name)
    entry = models.get_model_weights(name).DEFAULT
    assert fetched == [entry.url]
    assert capsys.readouterr().out == ""
    expected = models.get_model(name, weights="DEFAULT").eval()
    side = spec_of(model).preprocessing.size // 2
    images = torch.rand(2, 3, side, side)
    with torch.no_grad():
        assert torch.equal(model.eval()(images), expected(images))
        assert isinstance(model.train()(images), torch.Tensor)
    assert class_names(model) == tuple(entry.meta["categories"])
    assert spec_of(model).weights == entry.name
    assert spec_of(model).num_classes == 1000


def test_a_name_of_weights_brings_its_own_preprocessing(server):
    server(reference("mobilenet_v2").state_dict())
    records = {
        weights: spec_of(load_backbone("mobilenet_v2", weights=weights))
        for weights in ("IMAGENET1K_V1", "default")
    }
    assert {key: (spec.weights, spec.preprocessing.resize) for key, spec in records.items()} == {
        "IMAGENET1K_V1": ("IMAGENET1K_V1", 256),
        "default": ("IMAGENET1K_V2", 232),
    }


def test_another_number_of_classes_keeps_all_but_the_head_and_says_so(server, caplog):
    state = reference(SMALL).state_dict()
    server(state)
    with caplog.at_level(logging.INFO, "transferkit"):
        model = load_backbone(SMALL, num_classes=7)
    assert same_state(model, state, except_=["classifier.1."])
    assert model(torch.rand(2, 3, 64, 64)).shape == (2, 7)
    assert class_names(model) is None
    assert "7 outputs where its weights have 1000" in caplog.text


def test_the_weights_own_number_of_classes_keeps_the_head(server):
    state = reference(SMALL).state_dict()
    server(state)
    model = load_backbone(SMALL, num_classes=1000)
    assert same_state(model, state)
    assert class_names(model) is not None


def test_an_unknown_name_of_weights_lists_those_there_are():
    with pytest.raises(ArgumentError, match="must be one of 'default', 'IMAGENET1K_V1', 'IMAGENET1K_V2'"):
        load_backbone("resnet50", weights="IMAGENET")
    # VGG-16 has weights without a classifier, whose file holds NaN there.
    with pytest.raises(ArgumentError, match=r"must be one of 'default', 'IMAGENET1K_V1'. Got"):
        load_backbone("vgg16", weights="IMAGENET1K_FEATURES")


@pytest.mark.parametrize(
    "failure",
    [
        urllib.error.URLError(OSError("Name or service not known")),
        urllib.error.HTTPError("https://x", 503, "Service Unavailable", http.client.HTTPMessage(), None),
        TimeoutError("timed out"),
        ConnectionResetError(104, "Connection reset by peer"),
        http.client.IncompleteRead(b"half"),
        RuntimeError('invalid hash value (expected "b8a52dc0", got "00")'),
    ],
    ids=lambda failure: type(failure).__name__,
)
def test_without_a_network_one_sentence_says_what_to_do(failure, tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise failure

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    with pytest.raises(DownloadError) as caught:
        load_backbone(SMALL)
    text = str(caught.value)
    assert "IMAGENET1K_V1" in text
    assert SMALL in text
    assert "pass weights=<path of a file>, or weights=None" in text
    assert "\n" not in text


def test_a_full_disk_is_no_matter_of_the_network(tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    with pytest.raises(
        OutputError, match=r"could not be stored at .*squeezenet1_1-.*No space left on device"
    ):
        load_backbone(SMALL)


def test_a_damaged_file_in_the_cache_is_named(server, tmp_path):
    server({})
    (tmp_path / "on-the-server.pth").write_bytes(b"PK\x03\x04 half a file")
    with pytest.raises(CheckpointCorruptError, match=r"squeezenet1_1-b8a52dc0.pth is damaged; delete it"):
        load_backbone(SMALL)


# --- random weights


def test_random_weights_have_the_preprocessing_of_the_default_ones_and_no_classes():
    spec = spec_of(load_backbone("mobilenet_v2", weights=None))
    assert spec.preprocessing == Preprocessing(size=224, resize=232)
    assert spec.classes is None
    assert spec.weights is None
    assert spec.num_classes == 1000


def test_one_seed_gives_the_same_random_weights_on_every_device(device):
    states = []
    for place in (None, device):
        torch.manual_seed(3)
        model = load_backbone(SMALL, weights=None, num_classes=7, device=place)
        states.append(model.state_dict())
    assert {tensor.device.type for tensor in states[1].values()} == {device.type}
    assert all(torch.equal(states[0][name], states[1][name].cpu()) for name in states[0])


# --- from files


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".safetensors"])
def test_a_file_of_200_classes_gives_a_model_of_200(file, suffix):
    path, state = file
    path = path.with_suffix(suffix)
    (save_file if suffix == ".safetensors" else torch.save)(state, path)
    model = load_backbone(SMALL, weights=path, image_size=64)
    spec = spec_of(model)
    assert same_state(model, state)
    assert (spec.num_classes, spec.classes) == (200, None)
    assert spec.preprocessing == Preprocessing(size=64, resize=73)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    assert spec.weights == f"mine{suffix} (sha256 {digest})"
    assert model(torch.rand(2, 3, 64, 64)).shape == (2, 200)


@pytest.mark.parametrize("wrapper", ["state_dict", "model"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_wrappers_and_prefixes_are_understood(file, wrapper, prefix):
    path, state = file
    inner = {f"{prefix}{name}": tensor for name, tensor in state.items()}
    torch.save({wrapper: inner, "epoch": 3, "optimizer": {"state": {}}}, path)
    assert same_state(load_backbone(SMALL, weights=str(path)), state)


def test_a_file_of_200_classes_and_another_number_asked_for(file, caplog):
    path, state = file
    with caplog.at_level(logging.INFO, "transferkit"):
        model = load_backbone(SMALL, weights=path, num_classes=7)
    assert same_state(model, state, except_=["classifier.1."])
    assert model(torch.rand(2, 3, 64, 64)).shape == (2, 7)
    assert "7 outputs where its weights have 200" in caplog.text
    assert "mine.pth" in spec_of(model).weights


def test_a_file_without_a_head_needs_a_number_of_classes(file):
    path, state = file
    body = {name: tensor for name, tensor in state.items() if not name.startswith("classifier.1.")}
    torch.save(body, path)
    with pytest.raises(WeightsMismatchError, match=r"missing: classifier.1.weight, classifier.1.bias\.$"):
        load_backbone(SMALL, weights=path)
    model = load_backbone(SMALL, weights=path, num_classes=7)
    assert same_state(model, state, except_=["classifier.1."])
    assert model.classifier[1].weight.shape[0] == 7


def test_weights_of_another_architecture_list_what_differs(tmp_path):
    path = tmp_path / "resnet.pth"
    torch.save(models.resnet18(weights=None, num_classes=4).state_dict(), path)
    with pytest.raises(WeightsMismatchError) as caught:
        load_backbone(SMALL, weights=path)
    text = str(caught.value)
    assert str(path) in text
    assert "missing: features.0.weight, " in text
    assert "unexpected: conv1.weight, " in text
    with pytest.raises(WeightsMismatchError, match=r"layer1.0.conv1.weight \(\[64, 64, 3, 3\] in the file, "):
        load_backbone("resnet50", weights=path)


@pytest.mark.parametrize(
    ("name", "arguments"), [("googlenet", {"init_weights": True}), ("inception_v3", {"init_weights": False})]
)
def test_a_file_with_auxiliary_classifiers_loads_without_them_and_gives_what_torchvision_gives(
    name, arguments, tmp_path
):
    path = tmp_path / "official.pth"
    expected = reference(name, num_classes=5, aux_logits=True, transform_input=True, **arguments)
    torch.save(expected.state_dict(), path)
    model = load_backbone(name, weights=path)
    images = torch.rand(2, 3, 96, 96)
    with torch.no_grad():
        assert torch.equal(model.eval()(images), expected(images))
    assert spec_of(model).builder_kwargs["transform_input"] is True
    from_scratch = load_backbone(name, weights=path, transform_input=False)
    assert spec_of(from_scratch).builder_kwargs["transform_input"] is False
    with torch.no_grad():
        assert not torch.allclose(from_scratch.eval()(images), expected(images))


def test_position_embeddings_are_interpolated_as_torchvision_does_it(tmp_path):
    path = tmp_path / "vit.safetensors"
    small = reference("vit_b_32", num_classes=5, image_size=96).half().state_dict()
    save_file(small, path)
    model = load_backbone("vit_b_32", weights=path, image_size=160)
    expected = models.vision_transformer.interpolate_embeddings(
        160, 32, {name: tensor.float() for name, tensor in small.items()}
    )
    assert expected["encoder.pos_embedding"].shape == (1, 26, 768)
    assert same_state(model, expected)
    assert spec_of(model).builder_kwargs == {"image_size": 160}
    assert model.eval()(torch.rand(1, 3, 160, 160)).shape == (1, 5)
    # Without a size asked for, weights of another size are a mistake.
    with pytest.raises(WeightsMismatchError, match=r"encoder.pos_embedding \(\[1, 10, 768\] in the file"):
        load_backbone("vit_b_32", weights=path)


def test_mnasnet_loads_from_a_file_that_does_not_know_its_version(tmp_path):
    expected = reference("mnasnet0_5", num_classes=5)
    save_file(expected.state_dict(), tmp_path / "mnasnet.safetensors")
    torch.save(dict(expected.state_dict()), tmp_path / "mnasnet.pth")
    for path in tmp_path.iterdir():
        model = load_backbone("mnasnet0_5", weights=path)
        assert same_state(model, expected.state_dict())


def test_a_file_of_embedded_weights_loads_like_any_other(tmp_path):
    path = tmp_path / "mini.pth"
    original = load_backbone("mini", weights=None, num_classes=3)
    torch.save(original.state_dict(), path)
    assert same_state(load_backbone("mini", weights=path), original.state_dict())


def test_errors_of_files_come_through(tmp_path):
    missing = tmp_path / "missing.pth"
    with pytest.raises(CheckpointError, match=f"There is no file {missing}"):
        load_backbone(SMALL, weights=missing)
    torch.save(nn.Linear(2, 2), tmp_path / "module.pth")
    with pytest.raises(UnsafeCheckpointError, match="save the model's state_dict"):
        load_backbone(SMALL, weights=tmp_path / "module.pth")


# --- sizes and preprocessing


def test_preprocessing_can_be_replaced_by_name_or_record_and_resized():
    by_name = load_backbone(SMALL, weights=None, preprocessing="cifar10")
    assert spec_of(by_name).preprocessing.size == 32
    record = Preprocessing(size=96, resize=128, crop="squash")
    resized = load_backbone(SMALL, weights=None, preprocessing=record, image_size=48)
    assert spec_of(resized).preprocessing == Preprocessing(size=48, resize=64, crop="squash")
    with pytest.raises(UnknownNameError, match="There is no preprocessing 'imagenetz'"):
        load_backbone(SMALL, weights=None, preprocessing="imagenetz")


def test_the_size_of_a_preprocessing_is_the_size_of_the_architecture():
    with torch.device("meta"):
        model = load_backbone("vit_b_32", weights=None, preprocessing=Preprocessing(size=64))
    assert spec_of(model).builder_kwargs == {"image_size": 64}
    assert model.encoder.pos_embedding.shape[1] == 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_classes": 0}, "The 'num_classes' parameter of load_backbone must be an int of at least 1"),
        ({"num_classes": 2.0}, "The 'num_classes' parameter of load_backbone must be an int of at least 1"),
        ({"image_size": "64"}, "The 'image_size' parameter of load_backbone must be an int of at least 1"),
        ({"image_size": True}, "The 'image_size' parameter of load_backbone must be an int of at least 1"),
        ({"weights": ""}, "The 'weights' parameter of load_backbone must be 'default'"),
        ({"weights": 3}, "The 'weights' parameter of load_backbone must be 'default'"),
        ({"device": "gpu"}, "The 'device' parameter must be one of 'auto', 'cpu'"),
    ],
)
def test_bad_arguments_are_refused_in_one_sentence(arguments, message):
    with pytest.raises(ArgumentError) as caught:
        load_backbone(SMALL, **{"weights": None, **arguments})
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


# --- real weights


@pytest.mark.real_data
def test_the_real_file_of_200_classes_is_torchvisions_model(real_data):
    path = real_data / "weights" / "resnet18_imagenet200_64px.pth"
    model = load_backbone("resnet18", weights=path, image_size=64).eval()
    expected = models.resnet18(num_classes=200)
    expected.load_state_dict(torch.load(path, weights_only=True))
    spec = spec_of(model)
    assert (spec.num_classes, spec.classes) == (200, None)
    assert spec.weights == "resnet18_imagenet200_64px.pth (sha256 aa724dc997ef7eac)"
    assert (spec.preprocessing.size, spec.preprocessing.resize) == (64, 73)
    images = F.normalize(torch.rand(4, 3, 64, 64), spec.preprocessing.mean, spec.preprocessing.std)
    with torch.no_grad():
        assert torch.equal(model(images), expected.eval()(images))
