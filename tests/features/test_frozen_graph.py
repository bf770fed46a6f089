"""Which modules are frozen, which stay whole, and what of theirs keeps working in a cut model."""

from __future__ import annotations

import copy

import pytest
import torch
import torchvision
from small_nets import IMAGES, Net, Stage, cut, modules_of, staged
from torch import Tensor, nn
from torch.nn import functional as F

import transferkit as tk
from transferkit.features.split import NoSplit, split_model


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
    model = Net(lambda self, x: self.fc(F.dropout(self.one(x), 0.5, self.training)))
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


def test_images_have_the_type_of_the_weights():
    class Asking(Stage):
        def forward(self, images):
            if images.dtype != self.free.weight.dtype:
                images = images.to(self.free.weight.dtype)
            return self.free(self.frozen(images.flatten(1)))

    model = Asking()
    assert modules_of(cut(model, "free").prefix) == {model.frozen}


def test_a_model_that_keeps_outputs_with_gradients_can_be_cut():
    """Such tensors cannot be copied; what a forward keeps stays as it is."""

    def keeping(stage, x):
        stage.kept = stage.free(stage.frozen(x))
        return stage.kept

    model = tk.freeze(staged(Stage(keeping)), except_=["stage.free", "fc"])
    model(IMAGES)
    kept = model.stage.kept
    assert kept.requires_grad
    assert split_model(model).where == "before 'stage.free'"
    assert model.stage.kept is kept


def test_a_model_that_cannot_be_copied_is_cut_at_its_head_or_not_at_all():
    class Uncopied(Stage):
        def __deepcopy__(self, memo):
            raise TypeError("there is one of these only")

    model = staged(Uncopied())
    assert cut(model).where == "before 'fc'"
    with pytest.raises(NoSplit, match="the forward of Net cannot be traced, and more than the head trains"):
        split_model(tk.freeze(model, except_=["stage.free", "fc"]))
