"""Where the cut falls, whatever a forward does with its modules, and what becomes of both parts."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from small_nets import IMAGES, Net, cut, modules_of
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse
from torch.nn import functional as F

import transferkit as tk
from transferkit.features.split import NoSplit, split_model
from transferkit.module_tree import has_parameters


def dropping(model, x):
    return model.fc(model.two(F.dropout(model.one(x), 0.5, model.training)))


def doubling_in_training(model, x):
    x = model.one(x)
    if model.training:
        x = x * 2
    return model.fc(model.two(x))


def skipping(model, x):
    x = model.one(x)
    return model.fc(model.two(x)) + x


def with_both_signs(model, x):
    x = model.two(model.one(x))
    return model.fc(x) + model.fc(-x)


def with_a_constant(model, x):
    return model.fc(model.two(model.one(x - torch.tensor([0.5]))))


def with_a_constant_of_the_mode(model, x):
    return model.fc(model.two(model.one(x) * torch.tensor(2.0 if model.training else 1.0)))


def adding_in_place(model, x):
    x = model.one(x)
    y = model.two(x)
    y.add_(x)
    return model.fc(y)


def changing_a_copy(model, x):
    scale = model.one.bias.clone()
    scale.add_(1)
    return model.fc(model.one(x) * scale) * scale


@pytest.mark.parametrize(
    ("forward", "where", "frozen"),
    [
        (lambda model, x: model.fc(model.two(model.one(x))), "before 'fc'", "one two"),
        (lambda model, x: model.fc(model.two(model.one(x)).relu()).softmax(1), "before 'fc'", "one two"),
        (with_a_constant, "before 'fc'", "one two"),
        # Different in training
        (dropping, "after 'one'", "one"),
        (doubling_in_training, "after 'one'", "one"),
        (with_a_constant_of_the_mode, "after 'one'", "one"),
        # Several paths
        (skipping, "after 'one'", "one"),
        (with_both_signs, "after 'two'", "one two"),
        (lambda model, x: model.fc(model.two(x)) * model.fc(model.two(x * 2)), None, "two"),
        (lambda model, x: model.fc(model.two(model.one(x) + x)), "before 'fc'", "one two"),
        (lambda model, x: model.fc(model.one(x)) + x, None, "one"),
        (lambda model, x: model.fc(F.linear(x, model.one.weight)) + x, None, "one"),
        (lambda model, x: model.one(model.fc(x)) + model.two.bias.exp(), None, ""),
        (lambda model, x: model.one(model.fc(model.two(model.one(x)))), "before 'fc'", "one two"),
        # A weight that is used elsewhere too
        (lambda model, x: F.linear(model.fc(model.one(x)), model.one.weight), "before 'fc'", "one"),
        (
            lambda model, x: model.fc(model.two(F.linear(model.one(x), model.fc.weight))),
            "after 'one'",
            "one",
        ),
        # Changes in place
        (adding_in_place, "after 'one'", "one"),
        (changing_a_copy, "before 'fc'", "one"),
        (lambda model, x: model.fc(F.relu(model.two(x), inplace=True)), "before 'fc'", "two"),
        (lambda model, x: F.relu(model.two(x), inplace=True) * model.fc.bias, "after 'two'", "two"),
        (lambda model, x: model.two(x).add_(model.fc(x * 0 + 1)), None, "two"),
        (lambda model, x: model.two(model.one(x)).add_(model.fc.bias), "after 'two'", "one two"),
        (lambda model, x: model.fc(model.two(model.one(x).mul_(model.fc.bias[0]))), "after 'one'", "one"),
    ],
)
def test_the_cut_is_the_last_frozen_tensor_on_every_path(forward, where, frozen):
    model = Net(forward)
    if where is None:
        reason = (
            "no single tensor carries what is frozen to what trains"
            if frozen
            else "nothing is frozen before what trains"
        )
        with pytest.raises(NoSplit, match=f"^{reason}$"):
            split_model(tk.freeze(model, except_="fc"))
        return
    split = cut(model)
    assert split.where == where
    assert modules_of(split.prefix) == {getattr(model, name) for name in frozen.split()}


@pytest.mark.parametrize(
    "draw",
    [lambda x: F.dropout(x, 0.5), torch.rand_like, lambda x: x * x.bernoulli(0.5), lambda x: x.uniform_()],
)
def test_what_is_always_random_stays_with_what_trains(draw):
    model = Net(lambda self, x: self.fc(self.two(draw(self.one(x)))))
    split = split_model(tk.freeze(model, except_="fc"))
    assert split.where == "after 'one'"
    features = split.prefix(IMAGES)
    torch.manual_seed(1)
    expected = model(IMAGES)
    torch.manual_seed(1)
    torch.testing.assert_close(split.suffix(features), expected)


def top_level_size(model, x):
    count = x.shape[0]
    x = model.two(model.one(x).view(count, 3, 4).flatten(1))
    return model.fc(x.view(count, -1)).reshape(x.size()[0], 12)


def method_size(model, x):
    count, _ = x.size()
    return model.fc(model.one(x)).view(count * 2, 6).view(x.size(0), 12)


@pytest.mark.parametrize("forward", [top_level_size, method_size])
def test_the_number_of_images_is_that_of_the_features(forward):
    split = cut(Net(forward))
    assert modules_of(split.suffix) == {split.model.fc}
    assert split.suffix(split.prefix(IMAGES)[:3]).shape == (3, 12)


def test_another_size_of_the_images_moves_the_cut():
    model = Net(lambda self, x: self.fc(self.two(self.one(x))).view(-1, x.shape[1]))
    with pytest.raises(NoSplit):
        split_model(tk.freeze(model, except_="fc"))


def test_a_tuple_is_no_place_to_cut():
    class Body(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(12, 12)

        def forward(self, x):
            return self.linear(x), x

    model = Net(lambda self, x: self.fc(self.body(x)[0]), body=Body())
    assert cut(model).where == "before 'fc'"

    def with_both(model, x):
        first, second = model.body(model.one(x))
        return model.fc(first) + second

    assert cut(Net(with_both, body=Body())).where == "before 'body'"


class Record(dict[str, Tensor]):
    """Holds its fields as items and as attributes, as those of Hugging Face do."""

    @property
    def logits(self):
        return self["logits"]


@pytest.mark.parametrize("record", [Record, SimpleNamespace])
def test_of_a_record_the_logits_are_taken(record):
    model = Net(lambda self, x: record(logits=self.fc(self.one(x)), loss=None))
    split = split_model(tk.freeze(model, except_="fc"))
    torch.testing.assert_close(split.suffix(split.prefix(IMAGES)), model(IMAGES).logits)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "densenet121", "convnext_tiny"])
def test_a_prefix_can_be_copied_folded_and_compiled(name):
    model = torchvision.models.get_model(name, weights=None, num_classes=3)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    prefix = split_model(tk.freeze(model, except_="head")).prefix
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        features = prefix(images)
        folded = fuse(copy.deepcopy(prefix).eval())
        count = sum(isinstance(module, nn.BatchNorm2d) for module in prefix.modules())
        assert sum(isinstance(module, nn.BatchNorm2d) for module in folded.modules()) < max(1, count)
        torch.testing.assert_close(folded(images), features, rtol=1e-4, atol=1e-4)
    if name == "resnet18":
        compiled = torch.compile(prefix, backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(compiled(images), features, rtol=1e-4, atol=1e-4)


LAYERS = {
    "linear": lambda: nn.Linear(12, 12),
    "norm": lambda: nn.BatchNorm1d(12),
    "relu": lambda: nn.ReLU(inplace=True),
    "dropout": nn.Dropout,
    "block": lambda: nn.Sequential(nn.Linear(12, 12), nn.Tanh(), nn.Linear(12, 12)),
}


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.sampled_from(sorted(LAYERS)), st.booleans()), min_size=1, max_size=6))
def test_any_sequence_under_any_plan(plan):
    """There is a cut exactly where a frozen layer with parameters comes before all that trains."""
    model = nn.Sequential(nn.Flatten(), *(LAYERS[kind]() for kind, _ in plan), nn.Linear(12, 12))
    trains = [False, *(free for _, free in plan), True]
    free = {
        id(each) for layer, chosen in zip(model, trains, strict=True) if chosen for each in layer.parameters()
    }
    tk.freeze(model, except_=lambda _, parameter: id(parameter) in free)
    leading = []
    for layer in model:
        if any(each.requires_grad for each in layer.parameters()):
            break
        leading.append(layer)
    if not any(map(has_parameters, leading)):
        with pytest.raises(NoSplit):
            split_model(model)
        return
    split = split_model(model)
    last = max(number for number, layer in enumerate(leading) if has_parameters(layer))
    assert set(leading[: last + 1]) <= set(split.prefix.modules())
    for training in (True, False):
        torch.manual_seed(1)
        expected = model.train(training)(IMAGES)
        torch.manual_seed(1)
        torch.testing.assert_close(split.suffix.train(training)(split.prefix(IMAGES)), expected)
