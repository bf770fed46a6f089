"""Frozen means inference mode: in a user's own loop, and through all that a model may undergo."""

from __future__ import annotations

import copy
import io
import pickle
import random
from collections.abc import Callable, Iterator

import pytest
import torch
from tiny_models import TINY_MODELS
from torch import Tensor, nn

from transferkit.backbones.preprocessing import Preprocessing
from transferkit.backbones.spec import BackboneSpec, Stage, set_spec
from transferkit.errors import ArgumentError, SelectorError
from transferkit.freezing import freeze, select_parameters, unfreeze
from transferkit.heads import replace_head


@pytest.fixture
def compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def trainable(model: nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def modes(model: nn.Module) -> dict[str, bool]:
    return {name: module.training for name, module in model.named_modules()}


def frozen_state(model: nn.Module) -> dict[str, Tensor]:
    """Every parameter that does not train, and every buffer."""
    tensors = dict(model.named_buffers())
    tensors |= {name: value for name, value in model.named_parameters() if not value.requires_grad}
    return {name: value.detach().clone() for name, value in tensors.items()}


def assert_same(state: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert state.keys() == other.keys()
    assert [name for name in state if not torch.equal(state[name], other[name])] == []


def train_ten_steps(model: nn.Module, images: Tensor) -> None:
    """A user's own loop, with an optimizer that holds every parameter and would decay them all."""
    targets = torch.arange(len(images), device=images.device) % 7
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=0.1)
    for _ in range(10):
        model.train()
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), targets).backward()
        optimizer.step()


def check_ten_steps(model: nn.Module, images: Tensor) -> None:
    before = frozen_state(model)
    head = {name: value.detach().clone() for name, value in model.named_parameters() if value.requires_grad}
    assert before
    assert head
    train_ten_steps(model, images)
    assert_same(frozen_state(model), before)
    after = dict(model.named_parameters())
    assert any(not torch.equal(after[name], value) for name, value in head.items())


@pytest.mark.parametrize("name", TINY_MODELS)
def test_ten_steps_of_a_users_own_loop_leave_what_is_frozen_as_it_was(name, device):
    tiny = TINY_MODELS[name]
    model = freeze(replace_head(tiny.build(), 7).to(device))
    assert trainable(model) == {name for name in trainable(model) if name.startswith(f"{tiny.head}.")}
    check_ten_steps(model, tiny.batch(device=device))


def through_pickle(model: nn.Module) -> nn.Module:
    return pickle.loads(pickle.dumps(model))


def through_a_file(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def with_a_part_compiled(model: nn.Module) -> nn.Module:
    name, part = next(pair for pair in model.named_children() if list(pair[1].parameters()))
    setattr(model, name, torch.compile(part, backend="eager"))
    return model


THROUGH: dict[str, Callable[[nn.Module], nn.Module]] = {
    "deepcopy": copy.deepcopy,
    "pickle": through_pickle,
    "torch.save": through_a_file,
    "double": lambda model: model.double().float(),
    "fx": torch.fx.symbolic_trace,
    "compile": lambda model: torch.compile(model, backend="eager"),
    "compile, deepcopy": lambda model: copy.deepcopy(torch.compile(model, backend="eager")),
    "compile in place": lambda model: [model.compile(backend="eager"), model][1],
    "aot": lambda model: torch.compile(model, backend="aot_eager"),
    "a part compiled": with_a_part_compiled,
    "data parallel": lambda model: nn.DataParallel(model).module,
}


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize("way", THROUGH)
@pytest.mark.parametrize("name", ["resnet", "densenet", "vit"])
def test_it_holds_through_what_a_model_may_undergo_after_freezing(name, way, device):
    tiny = TINY_MODELS[name]
    model = THROUGH[way](freeze(replace_head(tiny.build(), 7)).to(device))
    check_ten_steps(model, tiny.batch(device=device))


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("name", ["resnet", "densenet", "vit"])
def test_it_holds_when_a_compiled_model_is_frozen(name, backend, device):
    tiny = TINY_MODELS[name]
    model = torch.compile(replace_head(tiny.build(), 7).to(device), backend=backend)
    images = tiny.batch(device=device)
    model(images).sum().backward()  # compiled in train mode, with every parameter training
    assert freeze(model) is model
    assert {name.removeprefix("_orig_mod.").rpartition(".")[0] for name in trainable(model)} == {tiny.head}
    check_ten_steps(model, images)


def test_it_holds_in_another_model_and_when_called_part_by_part():
    model = freeze(TINY_MODELS["resnet"].build())
    other = nn.Sequential(model.layer4, nn.Flatten(), nn.Linear(512, 2)).train()
    assert not any(module.training for module in other[0].modules())
    assert all(module.training for module in other[1:])
    model.layer3.train()
    model.bn1.train()
    assert not any(module.training for module in [*model.layer3.modules(), model.bn1])


@pytest.mark.parametrize("name", ["densenet", "efficientnet", "vit", "swin"])
def test_the_features_of_a_frozen_backbone_are_those_of_inference(name, device):
    tiny = TINY_MODELS[name]
    model = freeze(tiny.build()).to(device)
    images, seen = tiny.batch(4, device), []
    body = next(module for module in reversed(list(model.children())[:-1]) if list(module.parameters()))
    body.register_forward_hook(lambda module, inputs, output: seen.append(output.detach()))
    for mode in (True, True, False):
        model.train(mode)(images)
    assert torch.equal(seen[0], seen[1])
    assert torch.equal(seen[0], seen[2])


def test_an_optimizer_built_before_freezing_moves_nothing_that_is_frozen():
    model = replace_head(TINY_MODELS["resnet"].build(), 7)
    images = TINY_MODELS["resnet"].batch(4)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for _ in range(2):  # leaves gradients and momentum behind
        nn.functional.cross_entropy(model(images), torch.arange(4)).backward()
        optimizer.step()
    before = frozen_state(freeze(model))
    optimizer.step()
    nn.functional.cross_entropy(model(images), torch.arange(4)).backward()
    optimizer.step()
    assert_same(frozen_state(model), before)


def layers(**children: nn.Module) -> nn.Sequential:
    model = nn.Sequential()
    for name, child in children.items():
        model.add_module(name, child)
    return model


def test_dropout_is_held_before_what_is_frozen_and_free_after_it():
    model = layers(
        first=nn.Dropout(), one=nn.Linear(4, 4), second=nn.Dropout(), two=nn.Linear(4, 4), third=nn.Dropout()
    )
    held = {name for name, mode in modes(freeze(model, except_="two").train()).items() if not mode}
    assert held == {"first", "one"}
    held = {name for name, mode in modes(freeze(model, except_="one").train()).items() if not mode}
    assert held == {"first", "second", "two"}
    held = {name for name, mode in modes(freeze(model, except_=None).train()).items() if not mode}
    assert held == set(modes(model))


def test_freezing_applies_at_once_and_leaves_other_modes_alone():
    model = layers(body=nn.BatchNorm1d(4), frozen=nn.Linear(4, 4), free=nn.Dropout(), head=nn.Linear(4, 2))
    model.train()
    model.free.eval()
    freeze(model)
    assert modes(model) == {"": True, "body": False, "frozen": False, "free": False, "head": True}


def test_a_shared_dropout_is_held_if_one_of_its_places_says_so():
    shared = nn.Dropout()
    model = layers(
        free=layers(linear=nn.Linear(4, 4), drop=shared), body=layers(linear=nn.Linear(4, 4), drop=shared)
    )
    assert modes(freeze(model, except_="free").train())["free.drop"] is False
    assert modes(freeze(model, except_="body").train())["free.drop"] is False
    assert modes(unfreeze(model).train())["free.drop"] is True


def test_a_train_method_of_the_modules_own_is_called_with_inference_mode():
    class Merging(nn.Linear):
        merged = False

        def train(self, mode: bool = True) -> Merging:
            self.merged = not mode
            return super().train(mode)

    model = layers(body=Merging(4, 4), head=nn.Linear(4, 2))
    assert freeze(model).body.merged
    assert model.train().body.merged
    assert not unfreeze(model).body.merged
    assert model.eval().body.merged


def test_what_is_made_trainable_by_hand_follows_the_caller_again():
    model = freeze(TINY_MODELS["resnet"].build(), except_=None)
    for parameter in model.layer4.parameters():
        parameter.requires_grad_(True)
    assert all(module.training for module in model.train().layer4.modules())
    assert model.training
    assert not any(module.training for module in model.layer3.modules())
    model.fc = nn.Linear(512, 3)
    assert model.train().fc.training


@pytest.mark.parametrize("names", [("0", "2"), ("0",), ("2",)])
def test_a_tied_parameter_trains_if_one_of_its_names_is_excepted(names):
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4))
    model[2].weight = model[0].weight
    freeze(model, except_=[f"{name}.weight" for name in names])
    assert trainable(model) == {"0.weight"}
    assert modes(model.train()) == {"": True, "0": True, "1": False, "2": True}
    freeze(model, except_="1")
    assert trainable(model) == {"1.weight", "1.bias"}
    unfreeze(model, only="2.weight")
    assert model[0].weight.requires_grad


def test_whole_numbers_and_complex_numbers():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model.steps = nn.Parameter(torch.zeros((), dtype=torch.int64), requires_grad=False)
    model.append(layers(count=nn.Module()))
    model[2].count.total = nn.Parameter(torch.zeros((), dtype=torch.int64), requires_grad=False)
    model[0].phase = nn.Parameter(torch.zeros(2, dtype=torch.complex64))
    freeze(model, except_=["1", "steps"])
    assert trainable(model) == {"1.weight", "1.bias"}
    unfreeze(model)
    assert trainable(model) == {name for name, _ in model.named_parameters()} - {"steps", "2.count.total"}
    assert all(modes(model.train()).values())


def test_a_lazy_module_is_an_error():
    with pytest.raises(ArgumentError, match=r"'0.weight' belongs to a lazy module.*run one batch"):
        freeze(nn.Sequential(nn.LazyLinear(4), nn.Linear(4, 2)))


def test_another_plan_replaces_the_first_entirely():
    images = TINY_MODELS["resnet"].batch()
    model = TINY_MODELS["resnet"].build()
    expected = freeze(copy.deepcopy(model), except_=["layer4", "fc"]).train()
    freeze(model, except_=["conv1", "bn1"]).train()
    for _ in range(2):
        freeze(model, except_=["layer4", "fc"])
        assert trainable(model) == trainable(expected)
        assert modes(model) == modes(expected)
    assert torch.equal(model(images), expected(images))


@pytest.mark.parametrize("name", ["resnet", "vit"])
def test_unfreezing_restores_everything(name):
    tiny = TINY_MODELS[name]
    untouched = tiny.build()
    model = copy.deepcopy(untouched)
    plain = {path: set(vars(module)) for path, module in model.named_modules()}
    freeze(model, except_=None)
    freeze(model, except_="head")
    for each in (model, untouched):
        each.eval()
        each.train()
    assert unfreeze(model) is model
    unfreeze(model)
    assert modes(model) == modes(untouched)
    assert trainable(model) == trainable(untouched)
    assert {path: set(vars(module)) for path, module in model.named_modules()} == plain
    images = tiny.batch()
    for each in (model, untouched):
        torch.manual_seed(1)
        train_ten_steps(each, images)
    assert_same(model.state_dict(), untouched.state_dict())


def test_unfreezing_a_part_leaves_the_rest_frozen():
    model = freeze(TINY_MODELS["resnet"].build()).train()
    unfreeze(model, only="layer4")
    assert {name.split(".")[0] for name in trainable(model)} == {"layer4", "fc"}
    assert all(module.training for module in model.layer4.modules())
    assert not any(module.training for module in model.layer3.modules())
    never_frozen = TINY_MODELS["resnet"].build()
    assert all(modes(unfreeze(never_frozen, only="head").train()).values())


def test_the_state_dict_stays_that_of_the_model():
    model = TINY_MODELS["resnet"].build()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert_same(freeze(model).state_dict(), before)


def test_train_refuses_what_is_no_mode():
    with pytest.raises(ArgumentError, match=r"'mode' parameter of Linear.train must be True or False"):
        freeze(nn.Sequential(nn.Linear(4, 2)), except_=None)[0].train("yes")


# --- selectors -----------------------------------------------------------------------------------


@pytest.fixture
def model() -> nn.Module:
    return nn.ModuleDict(
        {
            "layer1": nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)),
            "layer10": nn.Linear(4, 4),
            "fc": nn.Linear(4, 2),
        }
    )


EVERYTHING = {
    *("layer1.0.weight", "layer1.0.bias", "layer1.1.weight", "layer1.1.bias"),
    *("layer10.weight", "layer10.bias", "fc.weight", "fc.bias"),
}


@pytest.mark.parametrize(
    ("selector", "selected"),
    [
        ("layer1", {name for name in EVERYTHING if name.startswith("layer1.")}),
        ("layer1.1", {"layer1.1.weight", "layer1.1.bias"}),
        ("layer1.1.bias", {"layer1.1.bias"}),
        ("_orig_mod.layer1.1.bias", {"layer1.1.bias"}),
        ("head", {"fc.weight", "fc.bias"}),
        ("*.weight", {name for name in EVERYTHING if name.endswith("weight")}),
        ("layer?", {name for name in EVERYTHING if name.startswith("layer1.")}),
        ("layer1.[0]", {"layer1.0.weight", "layer1.0.bias"}),
        ("*", EVERYTHING),
        (
            lambda name, parameter: parameter.ndim == 2,
            {n for n in EVERYTHING if "weight" in n and "1.1" not in n},
        ),
        (["fc", "layer1.1.b*"], {"fc.weight", "fc.bias", "layer1.1.bias"}),
        ({"fc", "layer10"}, {"fc.weight", "fc.bias", "layer10.weight", "layer10.bias"}),
        (("fc", lambda name, parameter: name == "layer1.1.bias"), {"fc.weight", "fc.bias", "layer1.1.bias"}),
    ],
)
def test_what_a_selector_selects(model, selector, selected):
    assert select_parameters(model, selector) == selected
    assert select_parameters(torch.compile(model, backend="eager"), selector) == selected
    assert select_parameters(nn.DataParallel(model), selector) == selected
    assert trainable(freeze(model, except_=selector)) == selected
    freeze(model, except_=None)
    assert trainable(unfreeze(model, only=selector)) == selected


@pytest.mark.parametrize(
    ("selector", "said"),
    [
        ("layr10", r"Got 'layr10', which matches none. Did you mean 'layer10'"),
        ("layer", r"Got 'layer', which matches none. Did you mean 'layer1'"),
        ("fc.weigth", r"Did you mean 'fc.weight'"),
        ("layer9*", r"Got 'layer9\*', which matches none"),
        ("", "Got '', which matches none"),
        (["fc", "nothing"], "Got 'nothing', which matches none"),
        (["fc", lambda name, parameter: False], "Got <lambda>, which matches none"),
    ],
)
def test_a_selector_that_matches_nothing_is_an_error_and_changes_nothing(model, selector, said):
    freeze(model, except_="layer10").train()
    before = trainable(model), modes(model)
    for call, option in ((freeze, "except_"), (unfreeze, "only")):
        with pytest.raises(
            SelectorError, match=f"The '{option}' parameter of {call.__name__} must match.*{said}"
        ):
            call(model, **{option: selector})
        assert (trainable(model), modes(model.train())) == before


@pytest.mark.parametrize("selector", [3, b"fc", nn.Linear(2, 2), ["fc", None], []])
def test_what_is_no_selector_is_an_error(model, selector):
    with pytest.raises(ArgumentError, match="'except_' parameter of freeze must be"):
        freeze(model, except_=selector)
    assert trainable(model) == EVERYTHING


def test_head_is_the_models_head_whatever_its_attribute_is_called(model):
    preprocessing = Preprocessing()
    other = copy.deepcopy(model)
    set_spec(other, BackboneSpec("custom", "layer10", preprocessing))
    assert select_parameters(other, "head") == {"layer10.weight", "layer10.bias"}
    # Without a spec, a user who has called something head means all of it.
    other = layers(body=nn.Linear(4, 4), head=nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)))
    assert trainable(freeze(other)) == {"head.0.weight", "head.0.bias", "head.2.weight", "head.2.bias"}


def test_an_untold_head_is_an_error_that_changes_nothing():
    model = nn.ModuleDict({"left": nn.Linear(4, 2), "right": nn.Linear(4, 2)})
    with pytest.raises(SelectorError, match="the candidates are 'left', 'right'"):
        freeze(model)
    assert len(trainable(model)) == 4
    assert trainable(freeze(model, except_="left")) == {"left.weight", "left.bias"}


def test_the_name_of_a_stage_selects_all_of_it(model):
    # What no stage lists (layer10) belongs to the one registered before it.
    stages = (Stage("early", ("layer1.0",)), Stage("late", ("layer1.1",)))
    set_spec(model, BackboneSpec("custom", "fc", Preprocessing(), stages))
    assert select_parameters(model, "late") == {
        *("layer1.1.weight", "layer1.1.bias", "layer10.weight", "layer10.bias")
    }
    with pytest.raises(SelectorError, match="Did you mean 'early'"):
        freeze(model, except_="earli")
    # A stage that is called like a module of it is all of the stage.
    stages = (Stage("early", ("layer1.0",)), Stage("layer1", ("layer1.1", "layer10")))
    set_spec(model, BackboneSpec("custom", "fc", Preprocessing(), stages))
    assert select_parameters(model, "early") == {"layer1.0.weight", "layer1.0.bias"}
    assert select_parameters(model, "layer1") == {name for name in EVERYTHING if name.startswith("layer1")}


# --- the rule, against a second implementation that follows its words ----------------------------


def stays_in_inference(root: nn.Module, path: str) -> bool:
    """Read the rule aloud for one module."""

    def wholly_frozen(module: nn.Module) -> bool:
        parameters = list(module.parameters())
        return bool(parameters) and not any(parameter.requires_grad for parameter in parameters)

    module = root.get_submodule(path)
    if list(module.parameters()):
        return wholly_frozen(module)
    if not path:
        return False
    parent_path, _, name = path.rpartition(".")
    parent = root.get_submodule(parent_path)
    if wholly_frozen(parent) or not list(parent.parameters()):
        return stays_in_inference(root, parent_path)
    names = [sibling for sibling, _ in parent.named_children()]
    return any(wholly_frozen(getattr(parent, sibling)) for sibling in names[names.index(name) + 1 :])


def random_tree(draw: random.Random, depth: int) -> nn.Module:
    if depth == 0 or draw.random() < 0.2:
        return draw.choice([nn.Dropout, nn.ReLU, lambda: nn.Linear(1, 1), lambda: nn.BatchNorm1d(1)])()
    node = draw.choice([nn.Module, nn.Sequential])()
    for number in range(draw.randint(0, 4)):
        node.add_module(f"m{number}", random_tree(draw, depth - 1))
    if draw.random() < 0.2:
        node.token = nn.Parameter(torch.zeros(1))
    return node


@pytest.mark.parametrize("seed", range(60))
def test_random_trees_and_plans_follow_the_rule(seed):
    draw = random.Random(seed)
    model = random_tree(draw, 4)
    untouched = copy.deepcopy(model)
    names = [name for name, _ in model.named_parameters()]
    paths = [path for path, _ in model.named_modules()]
    for _ in range(4):
        # The caller's own choices reach a model that is never frozen, too.
        for path in draw.sample(paths, min(3, len(paths))):
            mode = draw.random() < 0.6
            model.get_submodule(path).train(mode)
            untouched.get_submodule(path).train(mode)
        plan = draw.sample(names, draw.randint(0, len(names)))
        freeze(model, except_=plan or None)
        assert trainable(model) == set(plan)
        held = {path for path in paths if stays_in_inference(model, path)}
        expected = {path: mode and path not in held for path, mode in modes(untouched).items()}
        assert modes(model) == expected
        for each in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert modes(each.train()) == {path: path not in held for path in paths}
            assert not any(modes(each.eval()).values())
    unfreeze(model)
    assert modes(model) == modes(untouched)
