"""Where the cut falls in models of users' own, whatever their forward does."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse
from torch.nn import functional as F

import transferkit as tk
from transferkit.features.split import NoSplit, split_model, why_not_split
from transferkit.module_tree import has_parameters
from transferkit.runtime import resolve_execution

IMAGES = torch.linspace(-1, 1, 48).reshape(4, 3, 2, 2)


class Net(nn.Module):
    """Two frozen layers and a head, all of one width; the tests vary what ``forward`` does with them."""

    def __init__(self, run, **modules):
        super().__init__()
        self.one = nn.Linear(12, 12)
        self.two = nn.Linear(12, 12)
        for name, module in modules.items():
            self.add_module(name, module)
        self.fc = nn.Linear(12, 12)
        self.run = run

    def forward(self, images):
        return self.run(self, images.flatten(1))


def cut(model, except_="fc"):
    """Freeze, cut and check; also that the suffix in training gives what the model gives."""
    split = split_model(tk.freeze(model, except_=except_))
    execution = resolve_execution(model, device="cpu", precision="fp32", compile=False)
    assert why_not_split(split, IMAGES, execution) is None
    features = split.prefix(IMAGES)
    before = features.clone()
    for training in (True, False):
        torch.manual_seed(1)
        expected = model.train(training)(IMAGES)
        torch.manual_seed(1)
        torch.testing.assert_close(split.suffix.train(training)(features), expected)
    assert torch.equal(features, before)
    return split


def modules_of(part: nn.Module) -> set[nn.Module]:
    return {module for module in part.modules() if module._parameters}


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
        (lambda model, x: model.fc(model.two(x)) * model.fc(model.two(x * 2)), None, ""),
        (lambda model, x: model.fc(model.two(model.one(x) + x)), "before 'fc'", "one two"),
        (lambda model, x: model.fc(model.one(x)) + x, None, ""),
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
        (lambda model, x: model.two(x).add_(model.fc(x * 0 + 1)), None, ""),
        (lambda model, x: model.two(model.one(x)).add_(model.fc.bias), "after 'two'", "one two"),
        (lambda model, x: model.fc(model.two(model.one(x).mul_(model.fc.bias[0]))), "after 'one'", "one"),
    ],
)
def test_the_cut_is_the_last_frozen_tensor_on_every_path(forward, where, frozen):
    model = Net(forward)
    if where is None:
        with pytest.raises(NoSplit, match="nothing is frozen before what trains"):
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


def test_images_have_the_type_of_the_weights():
    class Asking(Stage):
        def forward(self, images):
            if images.dtype != self.free.weight.dtype:
                images = images.to(self.free.weight.dtype)
            return self.free(self.frozen(images.flatten(1)))

    model = Asking()
    assert modules_of(cut(model, "free").prefix) == {model.frozen}


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


# --- modules ---------------------------------------------------------------------------------------------


class Pooled(nn.Module):
    """A head that begins with what has no parameters."""

    def __init__(self, pool):
        super().__init__()
        self.pool = pool
        self.linear = nn.Linear(6, 12)

    def forward(self, x):
        return self.linear(self.pool(x.view(-1, 6, 2)).flatten(1))


class TrainingOnly(nn.Module):
    """Has no parameters and looks at its mode."""

    def forward(self, x):
        return x * 2 if self.training else x


@pytest.mark.parametrize(
    "wrap", [lambda head: head, nn.Sequential, lambda head: nn.Sequential(nn.Sequential(head))]
)
def test_what_a_head_begins_with_is_frozen_too(wrap):
    model = Net(lambda self, x: self.head(self.one(x)), head=wrap(Pooled(nn.AdaptiveAvgPool1d(1))))
    assert cut(model, "head").prefix(IMAGES).shape == (4, 6)
    model = Net(
        lambda self, x: self.head(self.one(x)),
        head=wrap(Pooled(nn.Sequential(nn.Dropout(), nn.AvgPool1d(2)))),
    )
    assert cut(model, "head").prefix(IMAGES).shape == (4, 6, 2)


@pytest.mark.parametrize(
    ("layer", "frozen"),
    [
        (nn.ReLU(inplace=True), True),
        (nn.Dropout(0.0), True),
        (nn.Dropout(0.5), False),
        (nn.BatchNorm1d(12, affine=False), False),
        (TrainingOnly(), False),
        (torchvision.ops.StochasticDepth(0.5, "row"), False),
    ],
)
def test_a_layer_without_parameters_is_frozen_if_it_does_the_same_in_training(layer, frozen):
    split = cut(Net(lambda self, x: self.fc(self.layer(self.one(x))), layer=layer))
    assert (layer in set(split.prefix.modules())) == frozen
    assert (layer in set(split.suffix.modules())) != frozen


def test_what_was_frozen_by_hand_counts_where_its_mode_plays_no_part():
    model = Net(lambda self, x: self.fc(self.norm(self.one(x))), norm=nn.BatchNorm1d(12))
    model.requires_grad_(False).fc.requires_grad_(True)
    split = split_model(model.train())
    assert split.where == "before 'norm'"
    split.suffix(split.prefix(IMAGES))
    assert model.norm.running_mean.any()


def test_frozen_norms_in_a_stage_that_trains_stay_frozen():
    stage = nn.Sequential(nn.Linear(12, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 12))
    model = Net(lambda self, x: self.fc(self.stage(self.one(x))), stage=stage)
    split = cut(model, ["stage.0", "stage.3", "fc"])
    assert split.where == "before 'stage.0'"
    split.suffix.train()
    assert [module.training for module in stage] == [True, False, True, True]
    assert not stage[1].running_mean.any()


def test_modes_reach_what_a_forward_asks():
    model = Net(dropping, extra=nn.Dropout())
    suffix = cut(model).suffix
    features = torch.ones(4, 12)
    assert torch.equal(suffix.eval()(features), suffix(features))
    assert not torch.equal(suffix.train()(features), suffix(features))
    assert split_model(model.train()).suffix.training
    assert not split_model(model.eval()).suffix.training


def test_both_parts_share_the_modules_weights():
    model = Net(lambda self, x: self.fc(self.two(self.one(x))))
    split = cut(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.5)
    torch.testing.assert_close(split.suffix(split.prefix(IMAGES)), model(IMAGES))


def test_tied_weights_train_at_their_first_place():
    model = Net(lambda self, x: self.fc(self.two(self.one(x))))
    model.fc.weight = model.two.weight
    assert cut(model).where == "before 'two'"
    model.fc.weight = model.one.weight
    with pytest.raises(NoSplit):
        split_model(tk.freeze(model, except_="fc"))


class Stage(nn.Module):
    """One layer that stays frozen and one that trains; ``forward`` is what the tests vary."""

    def __init__(self, run=None):
        super().__init__()
        self.frozen = nn.Linear(12, 12)
        self.free = nn.Linear(12, 12)
        self.register_buffer("count", torch.zeros(()))
        self.run = run or (lambda self, x: self.free(self.frozen(x)))

    def forward(self, x):
        return self.run(self, x)


def staged(stage):
    return Net(lambda self, x: self.fc(self.stage(self.one(x))), stage=stage)


def by_value(stage, x):
    return stage.free(stage.frozen(x) if x.sum() < 1000 else x)


def by_chance(stage, x):
    return stage.free(stage.frozen(x) if torch.rand(()) < 2 else x)


@pytest.mark.parametrize(
    ("forward", "where"),
    [(None, "before 'stage.free'"), (by_value, "before 'stage'"), (by_chance, "before 'stage'")],
)
def test_what_cannot_be_traced_stays_whole(forward, where):
    model = tk.freeze(staged(Stage(forward)), except_=["stage.free", "fc"])
    state = torch.get_rng_state()
    split_model(model)
    assert torch.equal(torch.get_rng_state(), state)
    assert cut(model, ["stage.free", "fc"]).where == where


def test_state_that_changes_in_each_pass_is_not_frozen():
    def counting(stage, x):
        stage.count.add_(1)
        return stage.free(stage.frozen(x) * stage.count)

    model = staged(Stage(counting))
    split = split_model(tk.freeze(model, except_=["stage.free", "fc"]))
    assert split.where == "after 'stage.frozen'"
    features = split.prefix(IMAGES)
    assert model.stage.count == 0
    first = split.suffix(features)
    assert model.stage.count == 1
    model.stage.count.zero_()
    torch.testing.assert_close(first, model(IMAGES))


def test_what_a_forward_leaves_behind_is_what_it_was():
    def keeping(stage, x):
        stage.seen = x
        stage.old = x
        return stage.free(stage.frozen(x))

    model = staged(Stage(keeping))
    model.stage.old = "old"
    split_model(tk.freeze(model, except_=["stage.free", "fc"]))
    assert model.stage.old == "old"
    assert not hasattr(model.stage, "seen")
    copy.deepcopy(model)


def test_hooks_run_where_they_are():
    seen = []

    def hook(module, inputs, output):
        assert isinstance(output, Tensor)
        seen.append(module)

    model = staged(Stage())
    for module in (model.one, model.stage, model.fc):
        module.register_forward_hook(hook)
    split = split_model(tk.freeze(model, except_=["stage.free", "fc"]))
    assert split.where == "before 'stage'"
    features = split.prefix(IMAGES)
    assert seen == [model.one]
    split.suffix(features)
    assert seen == [model.one, model.stage, model.fc]
    model.register_forward_hook(hook)
    with pytest.raises(NoSplit, match="Net has hooks, or a train method of its own"):
        split_model(model)


def test_a_train_method_of_its_own_is_called():
    class Merging(Stage):
        merged = False

        def train(self, mode=True):
            self.merged = not mode
            return super().train(mode)

    model = staged(Merging())
    suffix = cut(model, ["stage.free", "fc"]).suffix
    for mode in (True, False):
        suffix.train(mode)
        assert model.stage.merged is not mode


@pytest.mark.parametrize("way", ["one module", "in place", "data parallel"])
def test_compiled_and_wrapped_models(way):
    model = staged(nn.Sequential(Stage(), nn.ReLU()))
    if way == "one module":
        model.stage = torch.compile(model.stage, backend="eager")
    elif way == "in place":
        model.stage.compile(backend="eager")
        model.compile(backend="eager")
    else:
        model.stage = nn.DataParallel(model.stage, device_ids=[])
    tk.freeze(model, except_=["*.free", "fc"])
    assert split_model(nn.DataParallel(model)).where.endswith("0.free'")


# --- what becomes of the parts --------------------------------------------------------------------------


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
