"""The steps against plain torch."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision.models.googlenet import GoogLeNetOutputs
from torchvision.models.inception import InceptionOutputs

import transferkit as tk
from transferkit.errors import NonFiniteError
from transferkit.training.optimizers import build_optimizer


@pytest.fixture
def model(device):
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3)).to(device)


def batch_of(device, count=6):
    return torch.randn(count, 3, 2, 2, device=device), torch.arange(count, device=device) % 3


def test_a_step_is_what_a_plain_loop_does(model, device):
    reference = copy.deepcopy(model)
    inputs, targets = batch_of(device)
    ours = torch.optim.SGD(model.parameters(), lr=0.1)
    theirs = torch.optim.SGD(reference.parameters(), lr=0.1)
    for _ in range(3):
        result = tk.train_step(model, (inputs, targets), ours)
        theirs.zero_grad()
        logits = reference(inputs)
        loss = F.cross_entropy(logits, targets)
        loss.backward()
        theirs.step()
        torch.testing.assert_close(result.loss, loss.detach())
        assert int(result.correct) == int((logits.argmax(1) == targets).sum())
        assert result.count == 6
    for mine, other in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(mine, other)


def test_clipping_is_torchs(model, device):
    reference = copy.deepcopy(model)
    inputs, targets = batch_of(device)
    tk.train_step(model, (inputs, targets), torch.optim.SGD(model.parameters(), lr=1.0), clip_norm=0.01)
    optimizer = torch.optim.SGD(reference.parameters(), lr=1.0)
    F.cross_entropy(reference(inputs), targets).backward()
    nn.utils.clip_grad_norm_(reference.parameters(), 0.01)
    optimizer.step()
    for mine, other in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(mine, other)


def weights_of(model):
    return copy.deepcopy(model.state_dict())


def assert_unchanged(model, before):
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def spoil_gradient(model):
    """Make a gradient NaN though the loss is finite."""
    return model[1].weight.register_hook(lambda gradient: torch.full_like(gradient, torch.nan))


def test_a_loss_that_is_not_finite_updates_nothing():
    model = nn.Linear(4, 3)
    before, batch = weights_of(model), (torch.full((2, 4), torch.nan), torch.tensor([0, 1]))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    message = r"^The loss is nan; lower the learning rate or look at the inputs\.$"
    with pytest.raises(NonFiniteError, match=message):
        tk.train_step(model, batch, optimizer)
    assert_unchanged(model, before)


@pytest.mark.parametrize("clip_norm", [None, 1.0])
def test_a_gradient_that_is_not_finite_updates_nothing(clip_norm):
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    before, batch = weights_of(model), batch_of("cpu")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    hook = spoil_gradient(model)
    message = r"^The norm of the gradient is nan; lower the learning rate or look at the inputs\.$"
    with pytest.raises(NonFiniteError, match=message):
        tk.train_step(model, batch, optimizer, clip_norm=clip_norm)
    assert_unchanged(model, before)
    # Whoever goes on starts without what was wrong.
    hook.remove()
    tk.train_step(model, batch, optimizer, clip_norm=clip_norm)
    assert all(value.isfinite().all() for value in model.state_dict().values())


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
@pytest.mark.parametrize("wrong", ["loss", "gradient"])
@pytest.mark.parametrize("good_steps", [0, 2])
def test_without_reading_all_updates_from_the_first_failure_on_are_left_out(
    model, device, optimizer, wrong, good_steps
):
    reference = copy.deepcopy(model)
    batch = batch_of(device)
    steps = [{"failed": torch.zeros((), device=device)}, {}]
    optimizers = [
        build_optimizer(tk.Phase(optimizer=optimizer), [{"params": list(each.parameters()), "lr": 0.01}])
        for each in (model, reference)
    ]
    for _ in range(good_steps):
        for each, own, options in zip((model, reference), optimizers, steps, strict=True):
            tk.train_step(each, batch, own, **options)
    failed = steps[0]["failed"]
    assert not failed
    if wrong == "loss":
        tk.train_step(model, (torch.full_like(batch[0], torch.inf), batch[1]), optimizers[0], failed=failed)
    else:
        hook = spoil_gradient(model)
        tk.train_step(model, batch, optimizers[0], failed=failed)
        hook.remove()
    assert failed
    tk.train_step(model, batch, optimizers[0], failed=failed)
    assert_unchanged(model, reference.state_dict())
    # The optimizer is as it was before the failure, too.
    failed.zero_()
    for each, own, options in zip((model, reference), optimizers, steps, strict=True):
        tk.train_step(each, batch, own, **options)
    assert_unchanged(model, reference.state_dict())


@pytest.mark.parametrize("clip_norm", [None, 0.01])
@pytest.mark.parametrize("fused", [None, True])
def test_scaling_the_loss_changes_no_update(model, device, clip_norm, fused):
    reference = copy.deepcopy(model)
    scaler = torch.amp.GradScaler(device.type, init_scale=1024.0)
    batch = batch_of(device)
    losses = []
    for each, own in ((model, scaler), (reference, None)):
        optimizer = torch.optim.AdamW(each.parameters(), lr=0.01, fused=fused)
        options = {"clip_norm": clip_norm, "scaler": own}
        losses.append(
            [
                tk.train_step(each, batch, optimizer, update=update, **options).loss
                for update in (False, True, True)
            ]
        )
    torch.testing.assert_close(losses[0], losses[1])
    for mine, other in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(mine, other)


@pytest.mark.parametrize("clip_norm", [None, 0.01])
def test_a_scaler_leaves_out_what_overflows_and_scales_less(model, device, clip_norm):
    scaler = torch.amp.GradScaler(device.type, init_scale=2.0**127)
    before = weights_of(model)
    inputs, targets = batch_of(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    tk.train_step(model, (inputs * 1e4, targets), optimizer, clip_norm=clip_norm, scaler=scaler)
    assert_unchanged(model, before)
    assert scaler.get_scale() == 2.0**126


def test_a_scaler_leaves_out_all_updates_from_a_failure_on(model, device):
    scaler = torch.amp.GradScaler(device.type, init_scale=1024.0)
    batch, failed = batch_of(device), torch.zeros((), device=device)
    optimizer = build_optimizer(tk.Phase(), [{"params": list(model.parameters()), "lr": 0.01}])
    before = weights_of(model)
    tk.train_step(model, batch, optimizer, scaler=scaler, failed=failed)
    assert any(not torch.equal(value, before[name]) for name, value in model.state_dict().items())
    before = weights_of(model)
    for inputs in (torch.full_like(batch[0], torch.nan), batch[0]):
        tk.train_step(model, (inputs, batch[1]), optimizer, scaler=scaler, failed=failed)
    assert failed
    assert_unchanged(model, before)


@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
@pytest.mark.parametrize("scaled", [False, True])
def test_a_step_does_not_wait_for_the_device(scaled, device):
    if device.type != "cuda":
        pytest.skip("only a CUDA device can be waited for")
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 3)).cuda()
    optimizer = build_optimizer(tk.Phase(), [{"params": list(model.parameters()), "lr": 0.01}])
    batch, failed = batch_of("cuda"), torch.zeros((), device="cuda")
    scaler = torch.amp.GradScaler("cuda") if scaled else None
    options = {"clip_norm": 1.0, "failed": failed, "scaler": scaler}
    tk.train_step(model, batch, optimizer, **options)
    torch.cuda.set_sync_debug_mode("error")
    try:
        tk.train_step(model, batch, optimizer, **options)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_eval_step_gives_float32_logits_without_gradients(model, device):
    logits = tk.eval_step(model.to(torch.float64), (torch.randn(2, 3, 2, 2, device=device).double(),))
    assert logits.dtype == torch.float32
    assert logits.shape == (2, 3)
    assert not logits.requires_grad


class WithAuxiliary(nn.Module):
    """Returns what torchvision's Inception and GoogLeNet return in training mode, by the same fields."""

    def __init__(self, kind):
        super().__init__()
        self.kind = kind
        self.layers = nn.ModuleList(nn.Linear(12, 3) for _ in kind._fields)

    def forward(self, images):
        outputs = [layer(images.flatten(1)) for layer in self.layers]
        return self.kind(*outputs) if self.training else outputs[0]


@pytest.mark.parametrize(("kind", "weight"), [(InceptionOutputs, 0.4), (GoogLeNetOutputs, 0.3)])
def test_auxiliary_classifiers_count_in_the_loss_and_not_in_the_accuracy(kind, weight, device):
    model = WithAuxiliary(kind).to(device)
    inputs, targets = batch_of(device)
    first, *others = model(inputs)
    expected = F.cross_entropy(first, targets) + weight * sum(
        F.cross_entropy(each, targets) for each in others
    )
    gradients = torch.autograd.grad(expected, list(model.parameters()))
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    before = [each.detach().clone() for each in model.parameters()]
    result = tk.train_step(model, (inputs, targets), optimizer)
    torch.testing.assert_close(result.loss, expected.detach())
    assert int(result.correct) == int((first.argmax(1) == targets).sum())
    for parameter, value, gradient in zip(model.parameters(), before, gradients, strict=True):
        torch.testing.assert_close(parameter.detach(), value - gradient)
    assert tk.eval_step(model.eval(), (inputs,)).shape == first.shape
