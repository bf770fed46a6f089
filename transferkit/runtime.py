"""Where and how a model runs: device, precision, memory format, folding, compiling, threads.

Everything here follows from facts that are known before the first batch, never from a timing,
so that two runs on one machine take the same path.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import nn

from transferkit.checks import check_choice, check_int, check_module, require
from transferkit.errors import ArgumentError
from transferkit.kept_memory import freed_memory_kept
from transferkit.registry import shown

M = TypeVar("M", bound=nn.Module)

PRECISIONS = ("auto", "fp32", "bf16", "fp16")
DECODINGS = ("fast", "exact")
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Execution:
    """How a model runs, as a record that goes into ``config.json``.

    ``resolve_execution`` makes one; derive others with ``dataclasses.replace``.

    Attributes:
        device: Such as ``"cpu"`` or ``"cuda:0"``.
        precision: ``"fp32"``, or ``"bf16"`` or ``"fp16"`` for autocast to these.
        channels_last: Whether weights and images lie in memory with the channels last.
        reason: Why the precision was chosen, in a few words.
        fold: Whether batch norm that does not train is folded into the convolution before it, and, on a
            CPU, convolutions that do not train are laid out for it beforehand; see ``packing``.
        compile: Whether what does not train is compiled, and on an accelerator the training steps too:
            ``True``, ``False``, or ``"auto"`` for where the number of images makes up for the time
            that compiling takes, which is nowhere on a CPU.
        threads: Threads of the CPU that one operation uses.
        decode: ``"fast"``, or ``"exact"`` for the pixels of Pillow to the bit.

    Raises:
        ArgumentError: A field has a value that makes no sense.

    >>> execution = resolve_execution(nn.Linear(2, 2), device="cpu")
    >>> dataclasses.replace(execution, decode="exact").decode
    'exact'
    """

    device: str
    precision: str
    channels_last: bool
    reason: str = "as asked"
    fold: bool = True
    compile: bool | str = "auto"
    threads: int = 1
    decode: str = "fast"

    def __post_init__(self) -> None:
        named = isinstance(self.device, str) and _parsed(self.device) is not None
        require(named, "Execution", "device", "the name of a device", self.device)
        require(isinstance(self.reason, str), "Execution", "reason", "a text", self.reason)
        check_choice("Execution", "precision", self.precision, PRECISIONS[1:])
        check_choice("Execution", "decode", self.decode, DECODINGS)
        check_int("Execution", "threads", self.threads, 1)
        _check_compile("Execution", self.compile)
        for name in ("channels_last", "fold"):
            require(
                isinstance(getattr(self, name), bool), "Execution", name, "True or False", getattr(self, name)
            )

    def __str__(self) -> str:
        threads = f"{self.threads} thread{'s' if self.threads > 1 else ''}"
        place = f"{self.device} ({threads})" if self.device == "cpu" else self.device
        layout = "channels last" if self.channels_last else "channels first"
        compiled = "compiled where it pays"
        if isinstance(self.compile, bool):
            compiled = "compiled" if self.compile else "not compiled"
        folded = "batch norm folded" if self.fold else "batch norm as it is"
        packs = self.device == "cpu" and self.channels_last and self.precision != "fp16"
        if self.fold and packs and self.compile is not True:
            folded += ", convolutions packed"
        return (
            f"{place}, {self.precision} ({self.reason}), {layout}; what is frozen: {folded}, {compiled}; "
            f"{self.decode} decoding"
        )

    @property
    def dtype(self) -> torch.dtype:
        """The floating-point type in which matrix products are computed."""
        return _DTYPES[self.precision]

    @property
    def memory_format(self) -> torch.memory_format:
        """The memory format of weights and images."""
        return torch.channels_last if self.channels_last else torch.contiguous_format

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the context in which the forward pass runs."""
        if self.precision == "fp32":
            return nullcontext()
        return torch.autocast(torch.device(self.device).type, dtype=self.dtype)

    @contextmanager
    def arithmetic(self) -> Iterator[None]:
        """Use the record's threads, and on CUDA in ``"fp32"`` whole factors, for as long as it lasts.

        On a CPU the memory of what is freed meanwhile is kept; see ``kept_memory``.
        """
        threads = torch.get_num_threads()
        if self.device == "cpu" and threads != self.threads:
            torch.set_num_threads(self.threads)
        exact = self.precision == "fp32" and self.device != "cpu"
        try:
            with (
                whole_factors() if exact else nullcontext(),
                freed_memory_kept() if self.device == "cpu" else nullcontext(),
            ):
                yield
        finally:
            if torch.get_num_threads() != threads:
                torch.set_num_threads(threads)

    def place(self, model: M) -> M:
        """Move a model to the device and into the memory format, in place."""
        # Weights that are laid out anew within torch.inference_mode() could never train again.
        with torch.inference_mode(False):
            return model.to(self.device).to(memory_format=self.memory_format)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as values that JSON can hold."""
        return dataclasses.asdict(self)


def _check_compile(owner: str, value: object) -> None:
    valid = isinstance(value, bool) or (isinstance(value, str) and value == "auto")
    require(valid, owner, "compile", "True, False or 'auto'", value)


@contextmanager
def whole_factors() -> Iterator[None]:
    """Keep CUDA from shortening the factors of float32 products to TF32, for as long as it lasts."""
    switches = _tf32_switches()
    before = [switch.fp32_precision for switch in switches]
    for switch in switches:
        switch.fp32_precision = "ieee"
    try:
        yield
    finally:
        for switch, value in zip(switches, before, strict=True):
            if switch.fp32_precision != value:
                switch.fp32_precision = value


def _tf32_switches() -> list[Any]:
    """Return what decides whether CUDA shortens the factors of float32 products to TF32."""
    # torch's own annotations lack the second.
    return [torch.backends.cuda.matmul, getattr(torch.backends.cudnn, "conv")]  # noqa: B009  # reason: undeclared


def resolve_device(device: str | torch.device = "auto") -> torch.device:
    """Return the device that a name stands for; ``"auto"`` prefers a CUDA device.

    Raises:
        ArgumentError: There is no such device here.

    >>> resolve_device("cpu")
    device(type='cpu')
    """
    if str(device) == "auto":
        return (
            torch.device("cuda", torch.cuda.current_device())
            if torch.cuda.is_available()
            else torch.device("cpu")
        )
    resolved = _parsed(device)
    available = {"cpu": 1, "cuda": torch.cuda.device_count()}
    if resolved is None or (resolved.index or 0) >= available.get(resolved.type, 0):
        here = ", ".join(["'auto'", "'cpu'", *(f"'cuda:{number}'" for number in range(available["cuda"]))])
        reason = ""
        if resolved is not None and resolved.type == "cuda" and not available["cuda"]:
            reason = ", because torch finds no CUDA device here"
        raise ArgumentError(
            f"The 'device' parameter must be one of {here}{reason}. Got {shown(device)} instead."
        )
    return resolved


def _parsed(device: object) -> torch.device | None:
    """Return the device of a name or number, here or not, or ``None`` if it is neither."""
    if isinstance(device, bool):  # torch would take it for a number
        return None
    try:
        return torch.device(device)  # type: ignore[call-overload, no-any-return]  # reason: what it cannot take, it says
    except (RuntimeError, TypeError, ValueError, OverflowError):
        return None


def bf16_unit(device: torch.device) -> str | None:
    """Return by what the hardware itself computes in bfloat16, or ``None`` if it does not."""
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        return f"compute capability {major}.{minor}" if major >= 8 else None
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    for feature, title in (("amx_bf16", "AMX"), ("avx512_bf16", "AVX512-BF16")):
        private = {"amx_bf16": "_is_amx_tile_supported", "avx512_bf16": "_is_avx512_bf16_supported"}[feature]
        if capabilities.get(feature, False) or getattr(torch.cpu, private, bool)():
            return title
    return None


def _automatic_precision(device: torch.device) -> tuple[str, str]:
    """Return the precision that fits the hardware, and why."""
    unit = bf16_unit(device)
    if unit is not None:
        return "bf16", unit
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        # From Volta on, matrix units multiply float16; before it float16 gains nothing.
        return ("fp16" if major >= 7 else "fp32"), f"compute capability {major}.{minor} has no bfloat16"
    return "fp32", "this CPU has no bfloat16 arithmetic"


def why_not_compile(device: torch.device) -> str | None:
    """Return what keeps ``torch.compile`` from working here, or ``None``."""
    if os.name == "nt":
        return "compiling is not set up on Windows"
    if device.type == "cuda":
        import importlib.util

        if importlib.util.find_spec("triton") is None:
            return "triton is not installed"
        # With it triton builds what starts its kernels.
        return None if _has_compiler("CC", "gcc", "clang") else "there is no C compiler"
    return None if _has_compiler("CXX", "g++", "clang++") else "there is no C++ compiler"


def _has_compiler(variable: str, *names: str) -> bool:
    compilers = [os.environ[variable]] if os.environ.get(variable) else names
    return any(shutil.which(compiler.split()[0]) for compiler in compilers)


def available_processors() -> int:
    """Return how many processors this process may use; it may be confined to some of the machine's."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def resolve_execution(
    model: nn.Module,
    *,
    device: str | torch.device = "auto",
    precision: str = "auto",
    compile: bool | str = "auto",
    decode: str = "fast",
) -> Execution:
    """Decide how a model runs.

    Args:
        model: The model; convolutions make the channels-last memory format pay.
        device: ``"auto"``, ``"cpu"``, ``"cuda"``, ``"cuda:1"`` …
        precision: ``"auto"`` takes bfloat16 autocast where the hardware computes it, float16 on
            CUDA devices that do not, and float32 elsewhere; ``"fp32"`` is exact; ``"bf16"`` and
            ``"fp16"`` are used wherever they are asked for.
        compile: Whether what does not train is compiled, and on an accelerator the training steps too;
            ``"auto"`` leaves it to the work at hand, and stands for ``False`` on a CPU.
        decode: ``"fast"``: pixels within one grey level of Pillow's; ``"exact"``: Pillow's own.

    Raises:
        ArgumentError: An argument has a value that makes no sense.

    >>> resolve_execution(nn.Linear(2, 2), device="cpu", precision="fp32").reason
    'as asked'
    """
    check_module("resolve_execution", model)
    check_choice("resolve_execution", "precision", precision, PRECISIONS)
    check_choice("resolve_execution", "decode", decode, DECODINGS)
    _check_compile("resolve_execution", compile)
    resolved = resolve_device(device)
    reason = "as asked"
    if precision == "auto":
        precision, reason = _automatic_precision(resolved)
    if compile == "auto" and resolved.type == "cpu":
        compile = False
    obstacle = None if compile is False else why_not_compile(resolved)
    if obstacle is not None:
        require(compile == "auto", "resolve_execution", "compile", f"False, because {obstacle}", compile)
        compile, reason = False, f"{reason}; {obstacle}"
    convolutional = any(isinstance(module, nn.Conv2d) for module in model.modules())
    return Execution(
        str(resolved),
        precision,
        convolutional,
        reason,
        compile=compile,
        threads=min(torch.get_num_threads(), available_processors()),
        decode=decode,
    )


def given_execution(
    model: nn.Module,
    execution: Execution | None,
    *,
    owner: str,
    device: str | torch.device = "auto",
    precision: str = "auto",
    compile: bool | str = "auto",
) -> Execution:
    """Return the execution that a user gave whole, or decide one from what else was given.

    Raises:
        ArgumentError: Both were given, or the device is not there.
    """
    check_module(owner, model)
    if execution is None:
        return resolve_execution(model, device=device, precision=precision, compile=compile)
    valid = isinstance(execution, Execution)
    require(valid, owner, "execution", "a record of resolve_execution(...), or None", execution)
    for name, value in (("device", device), ("precision", precision), ("compile", compile)):
        require(value == "auto", owner, name, "left out beside 'execution', which says it", value)
    resolve_device(execution.device)
    return execution
