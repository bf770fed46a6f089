"""When a run is saved, and what signals do to it."""

from __future__ import annotations

import itertools
import os
import signal
import threading
from collections.abc import Iterator

import numpy as np
import pytest

import transferkit as tk
from transferkit.errors import ArgumentError
from transferkit.training import keeping
from transferkit.training.checkpoint_files import CheckpointFolder
from transferkit.training.keeping import Interrupts, RunKeeper
from transferkit.training.run_state import Progress


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(keeping.time, "perf_counter", lambda: self.now)


def keeper_of(
    clock: Clock, policy: tk.Checkpoints, *, size: int = 0, cost: float = 0.0
) -> tuple[RunKeeper, list]:
    written: list[tuple[float, int]] = []

    def write(progress: Progress | None) -> str:
        written.append((clock.now, -1 if progress is None else progress.updates))
        clock.now += cost
        return "there"

    return RunKeeper(policy, Interrupts(), write, size=size), written


def test_a_run_is_saved_every_so_many_steps(monkeypatch):
    clock = Clock(monkeypatch)
    keeper, written = keeper_of(clock, tk.Checkpoints(seconds=None, steps=3))
    for update in range(1, 11):
        keeper.reached(Progress(updates=update))
    assert [update for _, update in written] == [3, 6, 9]


def test_a_run_is_saved_every_so_many_seconds(monkeypatch):
    clock = Clock(monkeypatch)
    keeper, written = keeper_of(clock, tk.Checkpoints(seconds=100))
    for update in range(1, 40):
        clock.now += 10
        keeper.reached(Progress(updates=update))
    assert [when for when, _ in written] == [100, 200, 300]


@pytest.mark.parametrize("cost", [1.0, 10.0, 60.0])
def test_saving_takes_at_most_two_percent_of_the_time(cost, monkeypatch):
    clock = Clock(monkeypatch)
    # 200 MB/s are taken for granted until the first was written.
    keeper, written = keeper_of(clock, tk.Checkpoints(), size=int(cost * 2e8), cost=cost)
    for update in range(1, 20_000):
        clock.now += 5
        keeper.reached(Progress(updates=update))
    assert len(written) > 10
    assert len(written) * cost / clock.now <= 0.02


def test_what_must_not_be_saved_is_asked_for_only_then(monkeypatch):
    keeper, written = keeper_of(Clock(monkeypatch), tk.Checkpoints(seconds=None, steps=2))
    asked = []

    def check() -> None:
        asked.append(True)
        raise ArithmeticError

    keeper.reached(Progress(updates=1), check)
    assert not asked
    with pytest.raises(ArithmeticError):
        keeper.reached(Progress(updates=2), check)
    assert not written


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"seconds": 0}, "The 'seconds' parameter of Checkpoints must be a positive float. Got 0 instead."),
        ({"steps": 0}, "The 'steps' parameter of Checkpoints must be an int of at least 1. Got 0 instead."),
        ({"keep": 0}, "The 'keep' parameter of Checkpoints must be an int of at least 1. Got 0 instead."),
    ],
)
def test_policies_that_make_no_sense(fields, message):
    with pytest.raises(ArgumentError) as error:
        tk.Checkpoints(**fields)
    assert str(error.value) == message


@pytest.fixture
def handlers_as_python_has_them() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


class SignalAt(tk.Callback):
    def __init__(self, number: int, *batches: int) -> None:
        self.number = number
        self.batches = batches
        self.seen = 0

    def step_end(self, result):
        self.seen += 1
        if self.seen in self.batches:
            signal.raise_signal(self.number)


def fit(model, run, *callbacks, resume=False, **options):
    pixels = np.random.default_rng(0).integers(0, 256, (20, 32, 32, 3), dtype=np.uint8)
    part = tk.Part(pixels, np.arange(20) % 2, ["a", "b"])
    trainer = tk.Trainer(
        model,
        recipe=tk.Phase(epochs=2),
        batch_size=4,
        run_dir=run,
        callbacks=callbacks,
        progress=False,
        **options,
    )
    return trainer.fit(part, resume=resume)


@pytest.mark.usefixtures("handlers_as_python_has_them")
@pytest.mark.parametrize(
    ("number", "kind", "text"),
    [
        (
            signal.SIGINT,
            KeyboardInterrupt,
            "The run was saved in {}; --resume, or resume=True, goes on from there.",
        ),
        (signal.SIGTERM, SystemExit, "143"),
    ],
)
def test_a_signal_leaves_a_checkpoint_and_the_handlers_as_they_were(number, kind, text, tmp_path):
    handler = signal.getsignal(number)
    with pytest.raises(kind) as ended:
        fit(tk.load_backbone("mini", num_classes=2), tmp_path, SignalAt(number, 7))
    saved = tmp_path / "checkpoints" / "000001"
    assert str(ended.value) == text.format(saved)
    assert signal.getsignal(number) == handler
    newest = CheckpointFolder(saved.parent).newest()
    assert newest is not None
    # The seventh update is whole: five of the first epoch and two of the second.
    assert (newest.state["progress"]["epoch"], newest.state["progress"]["updates"]) == (2, 2)
    whole, resumed = (tk.load_backbone("mini", num_classes=2) for _ in range(2))
    resumed.load_state_dict(whole.state_dict())
    counter = SignalAt(number)
    assert len(fit(resumed, tmp_path, counter, resume=True)) == 2
    assert counter.seen == 3


@pytest.mark.usefixtures("handlers_as_python_has_them")
def test_a_signal_while_nothing_changes_ends_the_run_at_once(tmp_path, monkeypatch):
    def validate(tools):
        signal.raise_signal(signal.SIGTERM)
        raise AssertionError("the signal came too late")

    monkeypatch.setattr("transferkit.training.loop.validate", validate)
    with pytest.raises(SystemExit):
        fit(tk.load_backbone("mini", num_classes=2), tmp_path)
    newest = CheckpointFolder(tmp_path / "checkpoints").newest()
    assert newest is not None
    assert (newest.state["progress"]["epoch"], newest.state["progress"]["updates"]) == (1, 5)
    assert newest.state["history"] == []


@pytest.mark.usefixtures("handlers_as_python_has_them")
def test_a_second_signal_does_not_wait(tmp_path):
    class Impatient(tk.Callback):
        def step_end(self, result):
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
            raise AssertionError("the second signal came too late")

    with pytest.raises(KeyboardInterrupt):
        fit(tk.load_backbone("mini", num_classes=2), tmp_path, Impatient())
    assert not (tmp_path / "checkpoints").exists()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.usefixtures("handlers_as_python_has_them")
def test_a_handler_of_the_users_own_is_called_after_saving_and_the_run_goes_on(tmp_path):
    seen = []

    def handler(number, frame):
        seen.append((number, sorted(path.name for path in (tmp_path / "checkpoints").iterdir())))

    signal.signal(signal.SIGTERM, handler)
    history = fit(tk.load_backbone("mini", num_classes=2), tmp_path, SignalAt(signal.SIGTERM, 3, 6))
    assert seen == [(signal.SIGTERM, ["000001"]), (signal.SIGTERM, ["000001", "000002"])]
    assert len(history) == 2
    assert signal.getsignal(signal.SIGTERM) is handler


@pytest.mark.usefixtures("handlers_as_python_has_them")
def test_a_child_process_ends_as_children_do(tmp_path):
    codes = []

    class Child(tk.Callback):
        def step_end(self, result):
            if not codes:
                child = os.fork()
                if child == 0:
                    os.kill(os.getpid(), signal.SIGTERM)
                    os._exit(0)  # not reached
                codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))

    assert len(fit(tk.load_backbone("mini", num_classes=2), tmp_path, Child())) == 2
    assert codes == [-signal.SIGTERM]


@pytest.mark.usefixtures("handlers_as_python_has_them")
def test_ignored_signals_stay_ignored(tmp_path):
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    assert len(fit(tk.load_backbone("mini", num_classes=2), tmp_path, SignalAt(signal.SIGINT, 3))) == 2
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.usefixtures("handlers_as_python_has_them")
def test_without_a_run_directory_signals_are_left_alone():
    seen = []

    class Look(tk.Callback):
        def step_end(self, result):
            seen.append(signal.getsignal(signal.SIGINT))

    fit(tk.load_backbone("mini", num_classes=2), None, Look())
    assert set(seen) == {signal.default_int_handler}


def test_in_another_thread_signals_are_left_alone(tmp_path):
    before = signal.getsignal(signal.SIGINT)
    lengths, seen = [], []

    class Look(tk.Callback):
        def step_end(self, result):
            seen.append(signal.getsignal(signal.SIGINT))

    def work() -> None:
        lengths.append(len(fit(tk.load_backbone("mini", num_classes=2), tmp_path, Look())))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert lengths == [2]
    assert set(seen) == {before}


@pytest.mark.usefixtures("handlers_as_python_has_them")
def test_a_signal_of_any_moment_leaves_a_run_that_ends_the_same(tmp_path):
    """Signals between any two lines of the run, not only where the loop expects them."""
    import sys

    def weights(model):
        return {name: value.clone() for name, value in model.state_dict().items()}

    start = weights(tk.load_backbone("mini", num_classes=2))

    def fresh():
        model = tk.load_backbone("mini", num_classes=2)
        model.load_state_dict(start)
        return model

    whole = fresh()
    fit(whole, tmp_path / "whole")
    rng = np.random.default_rng(0)
    for attempt in range(12):
        run = tmp_path / str(attempt)
        moment = int(rng.integers(1, 4000))
        lines = itertools.count()
        sent = []

        def trace(frame, event, argument, moment=moment, lines=lines, sent=sent):
            name = frame.f_globals.get("__name__", "")
            if not name.startswith("transferkit.training") or name.endswith("keeping"):
                return None
            held_back = signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
            if held_back and not sent and next(lines) >= moment:
                sent.append(moment)
                signal.raise_signal(signal.SIGTERM)
            return trace

        model = fresh()
        before = sys.gettrace()
        sys.settrace(trace)
        try:
            fit(model, run)
        except SystemExit:
            sys.settrace(before)
            model = fresh()
            fit(model, run, resume=True)
        finally:
            sys.settrace(before)
        ended = weights(model)
        assert all((value == ended[name]).all() for name, value in weights(whole).items()), f"line {moment}"
