"""A model is cut into what is frozen and what trains, and both together are the model."""

from __future__ import annotations

import copy
import random
from types import SimpleNamespace

import pytest
import torch
import torchvision
from tiny_models import TINY_MODELS
from torch import nn
from torch.nn import functional as F

import transferkit as tk
from transferkit.features.split import NoSplit, Split, split_model, why_not_split
from transferkit.heads import replace_head
from transferkit.runtime import resolve_execution

# What trains besides the head, and where the cut then is; ``None`` for the head alone.
PLANS = {
    ("resnet", None): "before 'fc'",
    ("resnet", "layer4"): "before 'layer4'",
    ("squeezenet", None): "before 'classifier'",
    ("squeezenet", "features.12"): "before 'features.12'",
    ("densenet", None): "before 'classifier'",
    ("densenet", "features.denseblock2"): "before 'features.denseblock2'",
    ("googlenet", None): "before 'dropout'",
    ("googlenet", "inception5b"): "before 'inception5b'",
    ("inception", None): "before 'dropout'",
    ("inception", "Mixed_7c"): "before 'Mixed_7c'",
    ("mobilenet_v3", None): "before 'classifier.2'",
    ("mobilenet_v3", "features.12"): "before 'features.12'",
    ("efficientnet", None): "before 'classifier'",
    ("efficientnet", "features.7"): "before 'features.7'",
    ("convnext", None): "before 'classifier.2'",
    ("convnext", "features.3"): "before 'features.3'",
    ("vit", None): "before 'heads'",
    ("vit", "encoder.layers.encoder_layer_1"): "before 'encoder.layers.encoder_layer_1'",
    ("swin", None): "before 'head'",
    ("swin", "features.3"): "before 'features.3'",
    ("maxvit", None): "before 'classifier.5'",
    ("maxvit", "blocks.1"): "before 'blocks.1'",
}
IMAGES = torch.linspace(-1, 1, 48).reshape(4, 3, 2, 2)

families = pytest.mark.parametrize(("name", "stage"), PLANS)


def tiny_model(name, stage, device):
    tiny = TINY_MODELS[name]
    model = replace_head(tiny.build(), 5).to(device)
    return tk.freeze(model, except_=[tiny.head, *([] if stage is None else [stage])])


def reason_of(split, images, precision="fp32"):
    execution = resolve_execution(split.model, device=images.device, precision=precision, compile=False)
    return why_not_split(split, images, execution)


@families
def test_features_and_suffix_give_the_models_logits(name, stage, device):
    model = tiny_model(name, stage, device)
    images = TINY_MODELS[name].batch(4, device)
    split = split_model(torch.compile(model, backend="eager"))
    assert split.model is model
    assert split.where == PLANS[name, stage]
    assert not any(parameter.requires_grad for parameter in split.prefix.parameters())
    trainable = {parameter for parameter in model.parameters() if parameter.requires_grad}
    assert trainable == {parameter for parameter in split.suffix.parameters() if parameter.requires_grad}
    assert reason_of(split, images) is None
    with torch.no_grad():
        features = split.prefix.train()(images)
        assert torch.equal(features, split.prefix.eval()(images))
        before = features.clone()
        for count in (4, 3):
            logits = split.suffix.eval()(features[:count])
            expected = model.eval()(images[:count])
            torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(features, before)


@families
def test_a_step_on_features_is_a_step_on_images(name, stage, device):
    """Dropout and stochastic depth included: what is frozen draws no random numbers."""
    whole = tiny_model(name, stage, device)
    cut = copy.deepcopy(whole)
    images = TINY_MODELS[name].batch(4, device)
    targets = torch.arange(4, device=device)
    split = split_model(cut)
    with torch.no_grad():
        features = split.prefix(images)
    for model, module, inputs in ((whole, whole, images), (cut, split.suffix, features)):
        # An optimizer that holds all parameters, as a user's own loop may have it.
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
        torch.manual_seed(1)
        for _ in range(2):
            module.train()
            optimizer.zero_grad()
            F.cross_entropy(module(inputs), targets).backward()
            optimizer.step()
    for (path, value), other in zip(whole.state_dict().items(), cut.state_dict().values(), strict=True):
        torch.testing.assert_close(
            other, value, rtol=1e-4, atol=1e-6, msg=lambda text, path=path: path + text
        )


@pytest.mark.parametrize(
    ("name", "size", "where", "shape"),
    [
        ("resnet18", 64, "before 'fc'", (512,)),
        ("vgg11", 64, "before 'classifier.5'", (4096,)),
        ("squeezenet1_1", 64, "before 'classifier'", (512, 3, 3)),
        ("densenet121", 64, "before 'classifier'", (1024,)),
        ("shufflenet_v2_x0_5", 64, "before 'fc'", (1024,)),
        ("mnasnet0_5", 64, "before 'classifier'", (1280,)),
        ("regnet_y_400mf", 64, "before 'fc'", (440,)),
        # Their auxiliary classifiers are no part of what is computed.
        ("googlenet", 64, "before 'dropout'", (1024,)),
        ("inception_v3", 75, "before 'dropout'", (2048, 1, 1)),
    ],
)
def test_torchvisions_own_models(name, size, where, shape, device):
    options = {"init_weights": False} if "ception" in name or name == "googlenet" else {}
    model = torchvision.models.get_model(name, weights=None, **options)
    model = tk.freeze(replace_head(model, 3).to(device))
    split = split_model(model.train())
    assert split.where == where
    images = torch.randn(2, 3, size, size, device=device)
    assert reason_of(split, images) is None
    assert split.prefix(images).shape == (2, *shape)


def test_low_precision_agrees_within_its_rounding(device):
    model = tiny_model("resnet", "layer4", device)
    assert reason_of(split_model(model), TINY_MODELS["resnet"].batch(4, device), "bf16") is None


def test_the_check_leaves_modes_buffers_and_random_state_as_they_were(device):
    class Counting(nn.Module):
        """Counts how often it is called, and draws random numbers in each mode."""

        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(12, 12)
            self.norm = nn.BatchNorm1d(12)
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x):
            self.calls.add_(1)
            return self.norm(self.linear(x)) + F.dropout(x) * 0

    model = nn.Sequential(nn.Flatten(), Counting(), nn.Dropout(), nn.Linear(12, 3)).to(device)
    tk.freeze(model.train(), except_="3")
    model[2].eval()
    split = split_model(model)
    split.suffix.train()
    model[3].eval()
    modes = {name: module.training for name, module in model.named_modules()}
    state = {name: value.clone() for name, value in model.state_dict().items()}
    random_state = torch.get_rng_state()
    assert reason_of(split, IMAGES.to(device)) is None
    assert torch.equal(torch.get_rng_state(), random_state)
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    # What is held remembers what the caller asked for last, and follows it once it is released.
    assert all(module.training for module in tk.unfreeze(model)[1].modules())


@pytest.mark.parametrize(
    ("except_", "reason"),
    [
        (None, "nothing trains"),
        ("*", "nothing is frozen"),
        (["0", "4"], "nothing is frozen before what trains"),
    ],
)
def test_there_may_be_nothing_to_cut(except_, reason):
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    with pytest.raises(NoSplit, match=f"^{reason}$"):
        split_model(tk.freeze(model, except_=except_))


class Net(nn.Module):
    """Two frozen layers and a head; ``forward`` is what the tests vary."""

    def __init__(self, forward=None):
        super().__init__()
        self.one = nn.Linear(12, 8)
        self.two = nn.Linear(8, 8)
        self.fc = nn.Linear(8, 3)
        self.run = forward

    def forward(self, images):
        return self.run(self, images.flatten(1))


def cut_at_head(model):
    return split_model(tk.freeze(model, except_="fc"))


class NoisyLayer(nn.Module):
    """Has no parameters and does not look at its mode."""

    def forward(self, x):
        return x + torch.randn_like(x)


class BatchMean(nn.Module):
    def forward(self, x):
        return x - x.mean(dim=0)


def with_layer(layer):
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 8), layer, nn.Linear(8, 3))
    return tk.freeze(model, except_="3")


def test_what_the_tracing_cannot_see_is_seen_by_the_check(device):
    images = IMAGES.to(device)
    split = split_model(with_layer(NoisyLayer()).to(device))
    assert reason_of(split, images) == "what stands before the cut differs between training and use"
    split = split_model(with_layer(BatchMean()).to(device))
    assert reason_of(split, images) == "an image's features depend on the batch that it is in"


@pytest.mark.parametrize("length", [5, 4])
def test_rows_must_be_images(length, device):
    """Sequences may come first; with as many steps as images only a smaller batch shows it."""
    model = Net(lambda self, x: self.fc(self.two(self.one(x)).expand(length, -1, -1)).mean(dim=0)).to(device)
    split = cut_at_head(model)
    assert split.prefix(IMAGES.to(device)).shape == (length, 4, 8)
    assert reason_of(split, IMAGES.to(device)) == (
        "what stands before the cut is not one tensor with a row for each image"
        if length == 5
        else "an image's features depend on the batch that it is in"
    )


def test_other_logits_than_the_models_are_refused(device):
    model = cut_at_head(Net(lambda self, x: self.fc(self.one(x))).to(device))
    other = nn.Linear(8, 3).to(device)
    split = Split(model.model, model.prefix, other, model.where)
    assert reason_of(split, IMAGES.to(device)) == "the model does more after the cut than what trains"
    split = Split(model.model, model.prefix, nn.Linear(7, 3).to(device), model.where)
    assert reason_of(split, IMAGES.to(device)).startswith("the cut model fails (")


# --- models that cannot be traced --------------------------------------------------------------------


def by_value(self, x):
    """The values decide, which a graph cannot hold."""
    x = self.one(x)
    if x.sum() > 1000:
        x = -x
    return self.fc(self.two(x))


def with_record(self, x):
    return SimpleNamespace(logits=by_value(self, x))


@pytest.mark.parametrize("forward", [by_value, with_record])
def test_an_untraceable_model_is_cut_at_its_head(forward, device):
    model = Net(forward).to(device).train()
    split = cut_at_head(model)
    assert split.where == "before 'fc'"
    images = IMAGES.to(device)
    assert reason_of(split, images) is None
    assert split.prefix(images).shape == (4, 8)
    assert not model.fc._forward_pre_hooks
    assert model.training
    with pytest.raises(NoSplit, match="the forward of Net cannot be traced, and more than the head trains"):
        split_model(tk.freeze(model, except_=["two", "fc"]))


def test_dropout_before_the_head_of_an_untraceable_model_trains_with_it(device):
    class Untraceable(Net):
        def __init__(self):
            super().__init__()
            self.classifier = nn.Sequential(
                nn.Linear(8, 8), nn.ReLU(inplace=True), nn.Dropout(0.5, inplace=True), nn.Linear(8, 3)
            )
            del self.fc

        def forward(self, images):
            x = self.one(images.flatten(1))
            return self.classifier(x if x.isfinite().all() else x.nan_to_num())

    model = tk.freeze(Untraceable().to(device), except_="classifier.3")
    split = split_model(model)
    assert split.where == "before 'classifier.2'"
    images = IMAGES.to(device)
    assert reason_of(split, images) is None
    features = split.prefix(images)
    before = features.clone()
    split.suffix.train()(features)
    assert torch.equal(features, before)


@pytest.mark.parametrize(
    ("forward", "reason"),
    [
        (
            lambda self, x: self.fc(self.one(x * bool(x.sum() < 1000)) * self.fc.bias.sum()),
            "something that trains is used before the cut too",
        ),
        (
            lambda self, x: self.fc(self.one(x)) + self.fc(self.two(self.one(x * bool(x.sum() < 1000)))),
            "the head does not run exactly once, on one tensor",
        ),
        (
            lambda self, x: self.fc(self.one(x * bool(x.sum() < 1000))).softmax(dim=1),
            "the model does more after the cut than what trains",
        ),
        (
            lambda self, x: self.fc(F.dropout(self.one(x * bool(x.sum() < 1000)), training=self.training)),
            "what stands before the cut differs between training and use",
        ),
    ],
)
def test_an_untraceable_model_may_have_to_run_whole(forward, reason, device):
    assert reason_of(cut_at_head(Net(forward).to(device)), IMAGES.to(device)) == reason


def test_a_failing_forward_leaves_no_hook(device):
    def fails(self, x):
        x = self.one(x)
        if x.sum() > -1000:
            raise RuntimeError("no")
        return self.fc(x)

    model = Net(fails).to(device)
    split = cut_at_head(model)
    with pytest.raises(RuntimeError, match="no"):
        split.prefix(IMAGES.to(device))
    assert not model.fc._forward_pre_hooks


def test_python_randomness_is_not_frozen_into_the_graph():
    def layer_drop(self, x):
        x = self.one(x)
        return self.fc(self.two(x) if random.random() < 0.5 else x)

    random.seed(3)
    state = random.getstate()
    split = cut_at_head(Net(layer_drop))
    assert random.getstate() == state
    assert reason_of(split, IMAGES) is not None
