"""The trainer against a plain loop, and what its users were promised."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import transferkit as tk
from transferkit.errors import ArgumentError, DataError, NonFiniteError, OutputError, RunDirectoryError
from transferkit.loading.batches import batch_slices
from transferkit.seeding import stream

QUIET = {"progress": False, "precision": "fp32"}


def state_of(model):
    return {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}


def assert_same_state(first, second):
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


def test_fine_tuning_is_what_a_plain_loop_does(tiny_model, tiny_part, device):
    model, part = tiny_model(), tiny_part(21)
    reference = copy.deepcopy(model).to(device)
    phase = tk.Phase(train="all", epochs=3, optimizer="sgd", lr=0.05, head_lr=0.1, schedule="constant",
                     warmup=0, weight_decay=0.0)  # fmt: skip
    tk.Trainer(model, recipe=phase, batch_size=8, seed=3, device=device, **QUIET).fit(part)

    preprocessing = tk.spec_of(reference).preprocessing
    images = torch.stack([preprocessing(part[index][0]) for index in range(21)]).to(device)
    targets = torch.from_numpy(part.targets).to(device)
    optimizer = torch.optim.SGD(
        [
            {"params": reference.body.parameters(), "lr": 0.05},
            {"params": reference.fc.parameters(), "lr": 0.1},
        ],
        momentum=0.9,
        nesterov=True,
    )
    reference.train()
    for epoch in (1, 2, 3):
        order = torch.from_numpy(stream(3, "order", epoch).permutation(21))
        for place in batch_slices(21, 8):
            chosen = order[place]
            optimizer.zero_grad()
            F.cross_entropy(reference(images[chosen]), targets[chosen]).backward()
            optimizer.step()
    for name, value in reference.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value, rtol=1e-4, atol=1e-5)


def test_a_probe_on_stored_features_is_one_through_the_model(tiny_model, tiny_part, device, monkeypatch):
    part, val = tiny_part(30), tiny_part(12, seed=1, name="val")
    stored, whole = tiny_model(), tiny_model()
    first = tk.Trainer(stored, recipe="linear-probe", batch_size=8, device=device, **QUIET)
    rows = first.fit(part, val, epochs=4)
    monkeypatch.setattr("transferkit.features.stored.why_not_split", lambda *arguments: "the test forbids it")
    second = tk.Trainer(whole, recipe="linear-probe", batch_size=8, device=device, **QUIET)
    other = second.fit(part, val, epochs=4)
    torch.testing.assert_close(stored.fc.weight, whole.fc.weight, rtol=1e-4, atol=1e-5)
    assert [row["val_accuracy"] for row in rows] == [row["val_accuracy"] for row in other]


def test_a_probe_changes_the_head_and_nothing_else(tiny_model, tiny_part, device):
    model = tiny_model()
    before = state_of(model)
    tk.Trainer(model, recipe="linear-probe", device=device, **QUIET).fit(tiny_part(), epochs=3)
    changed = {name for name, value in state_of(model).items() if not torch.equal(value, before[name])}
    assert changed == {"fc.weight", "fc.bias"}


def test_batch_norm_can_stay_as_it_is_while_everything_else_trains(tiny_model, tiny_part, device):
    model = tiny_model()
    model.train()(torch.randn(16, 3, 8, 8))  # statistics that are worth keeping
    before = state_of(model)
    phase = tk.Phase(epochs=2, freeze_batch_norm=True)
    tk.Trainer(model, recipe=phase, device=device, **QUIET).fit(tiny_part())
    changed = {name for name, value in state_of(model).items() if not torch.equal(value, before[name])}
    assert changed == {"body.0.weight", "body.0.bias", "fc.weight", "fc.bias"}


def test_batch_norm_that_has_seen_nothing_is_not_kept(tiny_model, tiny_part, tmp_path):
    model, run = tiny_model(), tmp_path / "run"
    tk.Trainer(model, recipe="lp-ft", run_dir=run, **QUIET).fit(tiny_part(), epochs=2)
    assert model.body[1].running_mean.any()
    config = json.loads((run / "config.json").read_text())
    assert [phase["freeze_batch_norm"] for phase in config["phases"]] == [False, False]


def test_the_best_weights_are_kept(tiny_model, tiny_part, device):
    part, val = tiny_part(16, noise=90), tiny_part(40, noise=90, seed=1, name="val")
    model = tiny_model()
    phases = [tk.Phase(train="all", epochs=8, optimizer="sgd", lr=0.5, schedule="constant")]
    history = tk.Trainer(model, recipe=phases, batch_size=4, device=device, **QUIET).fit(part, val)
    ranks = [(row["val_accuracy"], -row["val_loss"]) for row in history]
    assert max(ranks) != ranks[-1], "the last epoch is the best one, so this test shows nothing"
    assert history.best["epoch"] == 1 + ranks.index(max(ranks))
    report = tk.evaluate(model, val, device=device, precision="fp32")
    assert report.accuracy == pytest.approx(max(ranks)[0])
    assert report.log_loss == pytest.approx(-max(ranks)[1], rel=1e-4)
    assert not model.training


def test_without_validation_the_last_weights_stay(tiny_model, tiny_part):
    seen = []
    model = tiny_model()

    class Watch(tk.Callback):
        def epoch_end(self, row):
            seen.append(state_of(model))

    trainer = tk.Trainer(model, recipe="fine-tune", augmentation="none", callbacks=[Watch()], **QUIET)
    trainer.fit(tiny_part(), epochs=3)
    assert_same_state(state_of(model), seen[-1])


def test_each_phase_starts_from_the_best_weights_so_far(tiny_model, tiny_part):
    model = tiny_model()
    ends, starts = [], []

    class Watch(tk.Callback):
        def phase_start(self, number, phase, note):
            starts.append(state_of(model))

        def epoch_end(self, row):
            ends.append((row["val_accuracy"], -row["val_loss"], state_of(model)))

    wild = tk.Phase(train="all", epochs=6, optimizer="sgd", lr=1.0, schedule="constant")
    phases = [wild, tk.Phase(epochs=1)]
    trainer = tk.Trainer(model, recipe=phases, batch_size=4, callbacks=[Watch()], **QUIET)
    trainer.fit(tiny_part(16, noise=90), tiny_part(30, noise=90, seed=1, name="val"))
    best = max(ends[:6], key=lambda end: end[:2])
    assert best is not ends[5], "the last epoch is the best one, so this test shows nothing"
    assert_same_state(starts[1], best[2])


def test_early_stopping_ends_its_phase_only(tiny_model, tiny_part):
    phases = [
        tk.Phase(train="all", epochs=30, optimizer="sgd", lr=1e-9, schedule="constant", warmup=0, patience=2),
        tk.Phase(train="head", epochs=2),
    ]
    history = tk.Trainer(tiny_model(norm=False), recipe=phases, **QUIET).fit(
        tiny_part(), tiny_part(8, seed=1, name="val")
    )
    first = [row for row in history if row["phase"] == 0]
    last_best = max(row["epoch"] for row in first if row["best"])
    assert len(first) == last_best + 2 < 30
    assert [row["phase"] for row in history][-2:] == [1, 1]


def test_one_seed_gives_one_result_and_leaves_the_callers_random_state_alone(tiny_model, tiny_part):
    def run(seed):
        model = tiny_model()
        tk.Trainer(model, augmentation="strong", seed=seed, batch_size=8, **QUIET).fit(tiny_part(), epochs=4)
        return state_of(model)

    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    first = run(0)
    assert torch.equal(torch.rand(3), expected)
    assert_same_state(first, run(0))
    assert any(not torch.equal(value, first[name]) for name, value in run(1).items())


def test_accumulation_is_a_larger_batch(tiny_model, tiny_part):
    def run(batch_size, accumulate):
        model = tiny_model(norm=False)
        phase = tk.Phase(epochs=2, optimizer="sgd", lr=0.1, warmup=0, accumulate=accumulate)
        tk.Trainer(model, recipe=phase, batch_size=batch_size, **QUIET).fit(tiny_part(20))
        return state_of(model)

    # 20 images: batches of 8, 8, 4, and of 4 added up in twos: 8, 8, 4.
    small, large = run(4, 2), run(8, 1)
    for name, value in large.items():
        torch.testing.assert_close(small[name], value, rtol=1e-4, atol=1e-6)


def test_a_last_batch_of_one_does_not_break_batch_norm(tiny_model, tiny_part):
    history = tk.Trainer(tiny_model(), recipe="fine-tune", batch_size=8, **QUIET).fit(tiny_part(17), epochs=1)
    assert np.isfinite(history[0]["train_loss"])


def test_learning_rates_go_where_they_are_meant():
    both = tk.Trainer(nn.Linear(2, 2), recipe="lp-ft", lr=0.5, progress=False)
    assert [phase.lr for phase in both.phases] == [None, 0.5]
    head = tk.Trainer(nn.Linear(2, 2), recipe="linear-probe", lr=0.5, progress=False)
    assert [phase.lr for phase in head.phases] == [0.5]


def test_augmentation_is_for_phases_that_train_the_backbone(tiny_model, tiny_part):
    shown = []

    def mark(image):
        shown.append(image.size)
        return image

    trainer = tk.Trainer(tiny_model(), recipe="lp-ft", augmentation=mark, **QUIET)
    trainer.fit(tiny_part(10), epochs=2)
    assert len(shown) == 10


def test_a_head_of_the_wrong_size_is_refused(tiny_model, tiny_part):
    with pytest.raises(ArgumentError) as caught:
        tk.Trainer(tiny_model(5), **QUIET).fit(tiny_part(classes=2))
    assert str(caught.value) == (
        "The model has 5 outputs, but the data has 2 classes; "
        "give it a new head with transferkit.replace_head(model, 2)."
    )


def test_class_names_and_the_part_of_selection_are_remembered(tiny_model, tiny_part):
    model = tiny_model()
    train, val = tiny_part(), tiny_part(10, seed=1, name="val")
    tk.Trainer(model, recipe="linear-probe", **QUIET).fit(train, val, epochs=1)
    assert tk.spec_of(model).classes == ("class0", "class1")
    assert tk.evaluate(model, val).selected is True
    assert tk.evaluate(model, tiny_part(10, seed=2, name="test")).selected is False


def test_a_run_directory_tells_the_run(tiny_model, tiny_part, tmp_path):
    run = tmp_path / "run"
    model = tiny_model()
    trainer = tk.Trainer(model, recipe="lp-ft", run_dir=run, seed=7, batch_size=8, **QUIET)
    history = trainer.fit(tiny_part(), tiny_part(10, seed=1, name="val"), epochs=3)
    config = json.loads((run / "config.json").read_text())
    assert config["seed"] == 7
    assert [phase["train"] for phase in config["phases"]] == ["head", "all"]
    assert all(phase["lr"] > 0 for phase in config["phases"])
    assert config["execution"]["precision"] == "fp32"
    assert config["versions"]["torch"] == torch.__version__
    rows = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    assert rows == list(history)
    again = tk.load_model(run, into=tiny_model(seed=5))
    assert_same_state(state_of(again), state_of(model))
    assert tk.spec_of(again) == tk.spec_of(model)


def test_a_used_run_directory_is_refused_before_any_work(tiny_model, tmp_path):
    (tmp_path / "something").write_text("mine")
    with pytest.raises(RunDirectoryError, match="is already in use; choose a new one"):
        tk.Trainer(tiny_model(), run_dir=tmp_path, **QUIET)
    assert (tmp_path / "something").read_text() == "mine"


def test_a_run_directory_that_cannot_be_written_is_told_before_any_work(tiny_model, tiny_part, tmp_path):
    (tmp_path / "file").touch()
    model = tiny_model()
    ran = []
    model.register_forward_pre_hook(lambda *_: ran.append(1))
    trainer = tk.Trainer(model, run_dir=tmp_path / "file" / "run", **QUIET)
    with pytest.raises(OutputError, match=r"run cannot be written: Not a directory\.$"):
        trainer.fit(tiny_part())
    assert not ran


def test_a_run_that_never_began_leaves_its_directory_free(tiny_model, tiny_part, tmp_path):
    (tmp_path / "ant.png").write_text("no image")
    part = tk.Part([tmp_path / "ant.png"] * 2, [0, 1], ["ant", "bee"])
    with pytest.raises(DataError):
        tk.Trainer(tiny_model(), run_dir=tmp_path / "run", **QUIET).fit(part)
    tk.Trainer(tiny_model(), recipe="linear-probe", run_dir=tmp_path / "run", **QUIET).fit(tiny_part())
    assert (tmp_path / "run" / "model").is_dir()


def test_a_second_fit_goes_on_from_the_weights_and_needs_a_run_directory_of_its_own(
    tiny_model, tiny_part, tmp_path
):
    model = tiny_model()
    trainer = tk.Trainer(model, recipe="linear-probe", run_dir=tmp_path / "run", **QUIET)
    trainer.fit(tiny_part(), epochs=1)
    before = (tmp_path / "run" / "history.jsonl").read_text()
    with pytest.raises(RunDirectoryError, match="is already in use; resume the run in it, or"):
        trainer.fit(tiny_part(), epochs=1)
    assert (tmp_path / "run" / "history.jsonl").read_text() == before
    again = tk.Trainer(model, recipe="linear-probe", **QUIET)
    first = again.fit(tiny_part(), epochs=3)
    second = again.fit(tiny_part(), epochs=3)
    assert second[0]["train_loss"] < first[0]["train_loss"]


def test_a_loader_of_ready_tensors_works_too(tiny_model, device):
    inputs, targets = torch.randn(20, 3, 8, 8), torch.arange(20) % 2
    loader = DataLoader(TensorDataset(inputs, targets), batch_size=5)
    trainer = tk.Trainer(tiny_model(), recipe="fine-tune", device=device, **QUIET)
    history = trainer.fit(loader, loader, epochs=2)
    assert history[-1]["val_accuracy"] is not None


def test_a_module_without_a_spec_trains_on_ready_tensors():
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
    data = TensorDataset(torch.randn(12, 3, 2, 2), torch.arange(12) % 2)
    before = state_of(model)
    tk.Trainer(model, recipe=tk.Phase(epochs=2), **QUIET).fit(data)
    assert any(not torch.equal(value, before[name]) for name, value in state_of(model).items())


def test_a_loss_that_is_not_finite_names_epoch_step_and_samples(tiny_model):
    inputs = torch.randn(8, 3, 8, 8)
    inputs[5] = torch.inf
    data = DataLoader(TensorDataset(inputs, torch.arange(8) % 2), batch_size=4)
    with pytest.raises(NonFiniteError, match=r"epoch 1, step 2, samples 4, 5, 6, 7\.$"):
        tk.Trainer(tiny_model(norm=False), recipe="fine-tune", device="cpu", **QUIET).fit(data, epochs=1)


def test_validation_classes_must_be_those_of_training(tiny_model, tiny_part):
    with pytest.raises(DataError, match="must have the same classes in the same order"):
        tk.Trainer(tiny_model(), **QUIET).fit(tiny_part(), tiny_part(9, classes=3, name="val"))


@pytest.mark.parametrize(
    ("argument", "value"),
    [("batch_size", 0), ("seed", -1), ("lr", 0), ("workers", -1), ("precision", "fp8"), ("device", "tpu")],
)
def test_bad_arguments_are_refused_at_construction(tiny_model, argument, value):
    with pytest.raises(ArgumentError, match=rf"^The '{argument}' parameter .*must be .+ Got .+ instead\."):
        tk.Trainer(tiny_model(), **{**QUIET, argument: value})


def test_class_weights_and_smoothing_reach_the_loss(tiny_model, tiny_part):
    part = tiny_part(12).take([0, 2, 4, 6, 8, 10, 1, 3])
    model = tiny_model(norm=False)
    reference = copy.deepcopy(model)
    phase = tk.Phase(epochs=1, label_smoothing=0.2, class_weights="balanced", lr=1e-9, warmup=0)
    history = tk.Trainer(model, recipe=phase, batch_size=8, device="cpu", **QUIET).fit(part)
    images = torch.stack([tk.spec_of(model).preprocessing(part[index][0]) for index in range(8)])
    weights = torch.tensor([8 / (2 * 6), 8 / (2 * 2)])
    targets = torch.from_numpy(part.targets)
    expected = F.cross_entropy(reference(images), targets, weights, label_smoothing=0.2)
    assert history[0]["train_loss"] == pytest.approx(expected.item(), rel=1e-4)


def test_a_named_probe_is_fitted_to_convergence_unless_steps_are_asked_for(tiny_model, tiny_part):
    def epochs(recipe="linear-probe", fitted=None, **options):
        trainer = tk.Trainer(tiny_model(), recipe=recipe, **options, **QUIET)
        return [row["epoch"] for row in trainer.fit(tiny_part(), epochs=fitted)]

    assert epochs() == [0]
    assert epochs(fitted=2) == [1, 2]
    assert len(epochs(lr=0.01)) == 20
    assert epochs("lp-ft", fitted=2) == [1, 2]
