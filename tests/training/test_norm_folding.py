"""Frozen batch norm within the convolution before it: the same model, with fewer passes over memory."""

from __future__ import annotations

import copy
import dataclasses
import pickle
import re
import threading

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import prune

import transferkit as tk
from transferkit.runtime import Execution
from transferkit.training.freeze_plan import apply_plan
from transferkit.training.norm_folding import NormFolding

BF16 = Execution("cpu", "bf16", channels_last=True)
FROZEN_NORMS = tk.Phase(freeze_batch_norm=True)
PREFIX = "Batch norm is not folded, so that training is slower than it could be: "


def learned(model):
    """Give batch norm statistics and factors that are far from those of a new one."""
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d) and norm.running_mean is not None:
            nn.init.normal_(norm.running_mean, std=0.3)
            nn.init.uniform_(norm.running_var, 0.5, 2.0)
            if norm.affine:
                nn.init.uniform_(norm.weight, 0.5, 1.5)
                nn.init.normal_(norm.bias, std=0.3)
    return model


def norms_frozen(model):
    """Let everything train but batch norm."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    frozen = {id(parameter) for norm in norms for parameter in norm.parameters()}
    return tk.freeze(model, except_=lambda _, parameter: id(parameter) not in frozen).train()


def net(conv=None, norm=None, forward=None):
    """A convolution and its norm among others, which are enough for the rest to be told apart."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
            self.stem_norm = nn.BatchNorm2d(8)
            self.conv = conv or nn.Conv2d(8, 8, 3, padding=1)
            self.norm = norm or nn.BatchNorm2d(8)
            self.last_norm = nn.BatchNorm2d(8)
            self.fc = nn.Linear(8, 3)

        def forward(self, images):
            inputs = F.relu(self.stem_norm(self.stem(images)))
            maps = forward(self, inputs) if forward else self.norm(self.conv(inputs))
            return self.fc(self.last_norm(F.relu(maps)).mean((2, 3)))

    torch.manual_seed(0)
    return norms_frozen(learned(Net()))


def images(count=2, size=16, device="cpu"):
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1)).to(device)


def on(device):
    return dataclasses.replace(BF16, device=str(device))


def folding(model, execution=BF16):
    return NormFolding(model, execution)


def gradients(model, inputs):
    model.zero_grad()
    torch.manual_seed(0)
    F.cross_entropy(model(inputs), torch.arange(len(inputs), device=inputs.device) % 3).backward()
    found = {name: each.grad for name, each in model.named_parameters() if each.requires_grad}
    assert all(gradient is not None for gradient in found.values())
    return found


def distance(one, other):
    return float(((one - other).norm() / other.norm()).detach())


LAYERS = {
    "bias": lambda: (nn.Conv2d(8, 8, 3), None),
    "no bias": lambda: (nn.Conv2d(8, 8, 3, bias=False), None),
    "groups": lambda: (nn.Conv2d(8, 8, 3, stride=2, dilation=2, padding=2, groups=4), None),
    "depthwise": lambda: (nn.Conv2d(8, 8, 3, padding="same", groups=8, bias=False), None),
    "pointwise": lambda: (nn.Conv2d(8, 8, 1), None),
    "no factors": lambda: (nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8, affine=False)),
    "other epsilon": lambda: (nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8, eps=0.1, momentum=None)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_outputs_and_gradients_are_those_of_the_module_itself(name, device):
    model = net(*LAYERS[name]()).to(device)
    inputs = images(device=device)
    expected, wanted = model(inputs).detach(), gradients(model, inputs)
    fold = folding(model, on(device))
    assert (model.conv, model.norm) in fold.pairs
    with fold.active():
        assert distance(model(inputs), expected) < 1e-5
        found = gradients(model, inputs)
    assert torch.equal(model(inputs), expected)
    assert found.keys() == wanted.keys()
    for parameter, gradient in wanted.items():
        torch.testing.assert_close(
            found[parameter], gradient, rtol=1e-4, atol=1e-5 * float(gradient.abs().max())
        )


@pytest.mark.parametrize("name", ["resnet18", "googlenet", "inception_v3"])
def test_a_whole_backbone_with_its_auxiliary_heads_gives_the_same(name):
    size = {"inception_v3": 299, "googlenet": 64}.get(name, 64)
    options = {} if name == "resnet18" else {"aux_logits": True}
    model = learned(tk.load_backbone(name, weights=None, num_classes=3, **options))
    apply_plan(model, FROZEN_NORMS)
    model.train()
    inputs = images(size=size)

    def outputs():
        torch.manual_seed(0)  # of dropout
        given = model(inputs)
        return [given] if isinstance(given, torch.Tensor) else [each for each in given if each is not None]

    with torch.no_grad():
        expected = outputs()
        fold = folding(model)
        fold.check(inputs)
        with fold.active():
            found = outputs()
    assert len(found) == {"resnet18": 1, "googlenet": 3, "inception_v3": 2}[name]
    assert all(distance(one, other) < 1e-5 for one, other in zip(found, expected, strict=True))


@pytest.mark.parametrize(("name", "count"), [("resnet18", 20), ("resnet50", 53)])
def test_every_pair_of_a_resnet_is_found_under_every_plan(name, count):
    model = learned(tk.load_backbone(name, weights=None, num_classes=3))
    for train in ("all", "last:1", "head"):
        apply_plan(model, dataclasses.replace(FROZEN_NORMS, train=train))
        assert len(folding(model).pairs) == count
    apply_plan(model, tk.Phase(freeze_batch_norm=False))
    assert folding(model).pairs == []


def test_nothing_is_folded_in_float32_or_where_the_record_says_so():
    model = net()
    assert len(folding(model).pairs) == 2
    assert len(folding(model, dataclasses.replace(BF16, precision="fp16")).pairs) == 2
    for change in ({"precision": "fp32"}, {"fold": False}):
        fold = folding(model, dataclasses.replace(BF16, **change))
        assert fold.pairs == []
        before = model(images())
        fold.check(images())
        with fold.active():
            assert torch.equal(model(images()), before)


class OwnConv(nn.Conv2d):
    def forward(self, inputs):
        return super().forward(inputs) * 2


class OwnNorm(nn.BatchNorm2d):
    def forward(self, inputs):
        return super().forward(inputs) + 1


def with_hook(layer, register):
    getattr(layer, register)(lambda *given: None)
    return layer


def with_forward(layer):
    layer.forward = lambda inputs: inputs[:, :8] * 2
    return layer


def twice(self, inputs):
    return self.norm(self.conv(self.conv(inputs)))


def kept(self, inputs):
    maps = self.conv(inputs)
    return self.norm(maps) + maps


def normed_twice(self, inputs):
    return self.norm(self.norm(self.conv(inputs)))


def something_between(self, inputs):
    return self.norm(F.relu(self.conv(inputs)))


def kept_in_training(self, inputs):
    maps = self.conv(inputs)
    return self.norm(maps) + maps if self.training else self.norm(maps)


def changed_in_place(self, inputs):
    maps = self.conv(inputs)
    maps.mul_(2)
    return self.norm(maps)


def conv8():
    return nn.Conv2d(8, 8, 3, padding=1)


UNFIT = {
    "convolution used twice": lambda: net(forward=twice),
    "output used twice": lambda: net(forward=kept),
    "output used twice in training": lambda: net(forward=kept_in_training),
    "norm used twice": lambda: net(forward=normed_twice),
    "something between": lambda: net(forward=something_between),
    "changed in place": lambda: net(forward=changed_in_place),
    "hook of the convolution": lambda: net(with_hook(conv8(), "register_forward_hook")),
    "hook before the convolution": lambda: net(with_hook(conv8(), "register_forward_pre_hook")),
    "hook of the norm": lambda: net(norm=with_hook(nn.BatchNorm2d(8), "register_full_backward_hook")),
    "forward of the convolution": lambda: net(with_forward(conv8())),
    "forward of the norm": lambda: net(norm=with_forward(nn.BatchNorm2d(8))),
    "class of the convolution": lambda: net(OwnConv(8, 8, 3)),
    "class of the norm": lambda: net(norm=OwnNorm(8)),
    "parametrized": lambda: net(nn.utils.parametrizations.weight_norm(conv8())),
    "pruned": lambda: net(prune.l1_unstructured(conv8(), "weight", 5)),
    "padding": lambda: net(nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect")),
    "transposed": lambda: net(nn.ConvTranspose2d(8, 8, 3)),
    "statistics of the batch": lambda: net(norm=nn.BatchNorm2d(8, track_running_stats=False)),
    "other norm": lambda: net(norm=nn.GroupNorm(2, 8)),
}


@pytest.mark.parametrize("name", UNFIT)
def test_a_pair_that_does_anything_else_stays_as_it_is_and_the_others_do_not(name):
    model = UNFIT[name]()
    fold = folding(model)
    assert fold.pairs == [(model.stem, model.stem_norm)]
    before = model(images())
    fold.check(images())
    with fold.active():
        assert distance(model(images()), before) < 1e-5


def forks(self, inputs):
    return self.norm(self.conv(inputs)) if inputs.mean() > -1e9 else inputs


def compiled_inside():
    model = net()
    model.conv.compile(backend="eager")
    return model


WHOLLY_UNFIT = {
    "control flow": lambda: net(forward=forks),
    "float64": lambda: net().double(),
    "bfloat16": lambda: net().bfloat16(),
    "batch norm trains": lambda: tk.unfreeze(net()),
    "compiled": lambda: torch.compile(net(), backend="eager"),
    "a layer is compiled": compiled_inside,
    "data parallel": lambda: nn.DataParallel(net()),
    "hook of the model": lambda: with_hook(net(), "register_forward_hook"),
}


@pytest.mark.parametrize("name", WHOLLY_UNFIT)
def test_models_of_which_nothing_is_folded(name):
    assert folding(WHOLLY_UNFIT[name]()).pairs == []


class FrozenBatchNorm(nn.Module):
    """As detection models have it: all of it is buffers."""

    def __init__(self):
        super().__init__()
        self.register_buffer("scale", torch.rand(8, 1, 1))

    def forward(self, inputs):
        return inputs * self.scale


def test_norms_of_another_kind_and_shared_blocks_are_left_alone():
    assert len(folding(net(norm=FrozenBatchNorm())).pairs) == 1
    block = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3))
    shared = norms_frozen(learned(nn.Sequential(block, nn.ReLU(), block, nn.Flatten(), nn.Linear(768, 3))))
    assert folding(shared).pairs == []


def test_tied_weights_get_the_gradients_of_both_places():
    first, second = conv8(), conv8()
    second.weight = first.weight
    model = net(first, forward=lambda self, x: self.norm(self.conv(second_norm(second(x)))))
    second_norm = learned(nn.BatchNorm2d(8)).eval().requires_grad_(False)
    wanted = gradients(model, images())
    with folding(model).active():
        found = gradients(model, images())
    assert distance(found["conv.weight"], wanted["conv.weight"]) < 1e-4


def entries(model):
    return {name: set(vars(module)) for name, module in model.named_modules()}


def test_the_model_is_afterwards_as_it_was():
    model = net()
    before, state = entries(model), copy.deepcopy(model.state_dict())
    fold = folding(model)
    fold.check(images())
    with fold.active():
        assert list(model.state_dict()) == list(state)
        assert type(model.conv) is nn.Conv2d
    with pytest.raises(RuntimeError, match="mine"), fold.active():
        raise RuntimeError("mine")
    assert entries(model) == before
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert model.conv.training
    assert not model.norm.training
    again = pickle.loads(pickle.dumps(copy.deepcopy(model.conv)))
    assert torch.equal(again.weight, model.conv.weight)


def test_contexts_within_each_other_fold_once():
    model = net()
    expected = model(images())
    outer, inner = folding(model), folding(model)
    with outer.active():
        with inner.active():
            assert distance(model(images()), expected) < 1e-5
        assert distance(model(images()), expected) < 1e-5
    assert torch.equal(model(images()), expected)


def test_a_norm_that_is_released_meanwhile_computes_as_itself():
    model, twin = net(), net()
    with folding(model).active():
        for each in (model, twin):
            type(each.norm).train(each.norm)
        assert distance(model(images()), twin(images())) < 1e-5
        assert not torch.equal(model.norm.running_mean, net().norm.running_mean)
        torch.testing.assert_close(model.norm.running_mean, twin.norm.running_mean)
        for each in (model, twin):
            tk.unfreeze(each).train()
        wanted, found = gradients(twin, images()), gradients(model, images())
        assert torch.equal(model(images()), twin(images()))
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_a_norm_that_trains_in_inference_mode_gets_its_gradients():
    model = net().eval()
    with folding(model).active():
        model.norm.requires_grad_(True)
        assert {"norm.weight", "norm.bias"} <= gradients(model, images()).keys()


def test_hooks_that_come_later_see_what_each_layer_computes():
    model = net()
    fold = folding(model)
    seen = []
    model.conv.register_forward_hook(lambda module, given, output: seen.append((given[0], output)))
    model.norm.register_forward_hook(lambda module, given, output: seen.append((given[0], output)))
    expected = model(images())
    fold.refresh()
    with fold.active():
        assert distance(model(images()), expected) < 1e-5
    assert all(distance(one, other) < 1e-5 for one, other in zip(seen[2], seen[0], strict=True))
    assert distance(seen[3][1], seen[1][1]) < 1e-5


def test_a_frozen_model_made_in_inference_mode_is_folded_too():
    with torch.inference_mode():
        model = learned(tk.load_backbone("resnet18", weights=None, num_classes=5))
    tk.freeze(tk.replace_head(model, 3)).train()
    expected = model(images(size=32))
    fold = folding(model)
    assert len(fold.pairs) == 20
    fold.check(images(size=32))
    with fold.active():
        assert 0 < distance(model(images(size=32)), expected) < 1e-5


def flips(self, inputs):
    maps = self.conv(inputs)
    return self.norm(maps.relu() if getattr(self, "other", False) else maps)


def by_autocast(self, inputs):
    maps = self.conv(inputs)
    return self.norm(maps.relu() if torch.is_autocast_enabled("cpu") else maps)


def skips_under_autocast(self, inputs):
    maps = self.conv(inputs)
    return maps if torch.is_autocast_enabled("cpu") else self.norm(maps)


def whole_batches(self, inputs):
    return self.norm(self.conv(inputs)).view(8, 8, 16, 16)


ASTRAY = {
    "an attribute": (flips, "the outputs would differ by "),
    "autocast": (by_autocast, "a norm is given something else than its convolution's output"),
    "autocast skips": (skips_under_autocast, "a norm is given something else than its convolution's output"),
    "the size of batches": (
        whole_batches,
        "a part of a batch cannot go through the model in inference mode (shape '[8, 8, 16, 16]' is invalid",
    ),
}


@pytest.mark.parametrize("name", ASTRAY)
def test_a_forward_that_does_something_else_than_when_traced_runs_unfolded(name):
    forward, reason = ASTRAY[name]
    model = net(forward=forward)
    fold = folding(model)
    assert (model.conv, model.norm) in fold.pairs
    model.other = True
    with BF16.autocast():
        expected = model(images(8))
    with pytest.warns(UserWarning, match=f"^{re.escape(PREFIX + reason)}.*\\.$") as told:
        fold.check(images(8))
    fold.check(images(8))  # says it once
    with fold.active(), BF16.autocast():
        assert torch.equal(model(images(8)), expected)
    assert len(told) == 1


def test_checking_changes_nothing_of_the_model():
    class Counts(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, inputs):
            self.calls.add_(1)
            return F.dropout(inputs, 0.5, training=True)

    model = net(norm=nn.Sequential(nn.BatchNorm2d(8), Counts()))
    model.last_norm.train()
    state, modes = copy.deepcopy(model.state_dict()), [each.training for each in model.modules()]
    random = torch.get_rng_state()
    fold = folding(model)
    assert len(fold.pairs) == 2
    fold.check(images())
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert [each.training for each in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), random)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_another_thread_may_use_the_model_meanwhile():
    model = net().eval()
    expected = model(images())
    outputs = []
    with folding(model).active():
        thread = threading.Thread(target=lambda: outputs.append(model(images())))
        thread.start()
        thread.join()
    assert distance(outputs[0], expected) < 1e-5
