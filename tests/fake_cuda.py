"""A CUDA device that is not there: its tensors are computed on the CPU, and who waits for them is noticed.

An operation on tensors of two devices is refused as CUDA refuses it. What CUDA would have to be waited
for (reading a value, copying without ``non_blocking``, choosing by a mask) is written down.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map

from transferkit.loading import device_pixels, normalize, resample

CUDA = torch.device("cuda:0")
aten = torch.ops.aten

# The size of what they return, or what they return itself, is a value.
_READS = {
    aten._local_scalar_dense.default,
    aten.nonzero.default,
    aten.masked_select.default,
    aten.equal.default,
    aten._unique2.default,
    aten.unique_dim.default,
    aten.bincount.default,
    aten.repeat_interleave.Tensor,
}
_INDEXED = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}
_COPIES = {aten._to_copy.default, aten.copy_.default}


class FakeCudaTensor(Tensor):
    """Says that it is on the device, and has its values on the CPU."""

    values: Tensor

    @staticmethod
    def __new__(cls, values: Tensor) -> FakeCudaTensor:
        # Autograd would ask for a stream of the device that it finds, so it finds none.
        shape = torch.empty_strided(values.size(), values.stride(), dtype=values.dtype, device="meta")
        tensor: FakeCudaTensor = Tensor._make_subclass(cls, shape, device_for_backend_keys=CUDA)
        tensor.values = values
        return tensor

    @property
    def device(self) -> torch.device:
        return CUDA

    @property
    def is_cuda(self) -> bool:
        return True

    def to(self, *args: Any, **kwargs: Any) -> Any:
        if args and isinstance(args[0], Tensor):
            args = (args[0].device, args[0].dtype, *args[1:])
        device, dtype, _, memory_format = torch._C._nn._parse_to(
            *args, **{key: value for key, value in kwargs.items() if key != "copy"}
        )
        stays = device is None or device.type == "cuda"
        same = stays and dtype in (None, self.dtype) and not kwargs.get("copy", False)
        if same and (memory_format is None or self.values.is_contiguous(memory_format=memory_format)):
            return self
        return super().to(*args, **kwargs)

    __torch_function__ = torch._C._disabled_torch_function_impl

    def __repr__(self) -> str:
        return f"FakeCudaTensor({self.values!r})"

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["values"], None

    @staticmethod
    def __tensor_unflatten__(inner: dict[str, Tensor], *_: object) -> FakeCudaTensor:
        return FakeCudaTensor(inner["values"])

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def data_ptr(self) -> int:
        return self.values.data_ptr()

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        if id(self) not in memo:
            copied = self.detach().clone()
            is_parameter = getattr(self, "_is_param", False)
            memo[id(self)] = nn.Parameter(copied, self.requires_grad) if is_parameter else copied
        return memo[id(self)]

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError("a tensor of the fake device has left it")


class FakeCuda(TorchDispatchMode):
    """Runs every operation on the CPU, and keeps the books.

    Attributes:
        waits: Operation and place in transferkit of each time that a real device would be waited for.
    """

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        tensors = [each for each in tree_flatten((args, kwargs))[0] if isinstance(each, Tensor)]
        there = [each for each in tensors if isinstance(each, FakeCudaTensor)]
        here = [each for each in tensors if not isinstance(each, FakeCudaTensor)]
        wanted = kwargs.get("device")
        # C++ finds the device "meta", and asks for it.
        goes_there = bool(there) if wanted is None else torch.device(wanted).type != "cpu"
        if func is aten._pin_memory.default:
            return here[0].clone()
        if func is aten.is_pinned.default:
            return False
        self._note(func, args, kwargs, there, here, goes_there)
        if wanted is not None:
            kwargs["device"] = torch.device("cpu")
        kwargs.pop("pin_memory", None)
        plain_args, plain_kwargs = tree_map(_values_of, (args, kwargs))
        with torch._C._DisableTorchDispatch():
            found = func(*plain_args, **plain_kwargs)
        if func is aten._to_copy.default and not goes_there:
            return found
        if not goes_there:
            return found if not there else return_and_correct_aliasing(func, args, kwargs, found)
        found = tree_map(lambda each: FakeCudaTensor(each) if isinstance(each, Tensor) else each, found)
        return return_and_correct_aliasing(func, args, kwargs, found) if there else found

    def _note(
        self,
        func: Any,
        args: Any,
        kwargs: dict[str, Any],
        there: list[FakeCudaTensor],
        here: list[Tensor],
        goes_there: bool,
    ) -> None:
        if func in _COPIES:
            moves = bool(there and here) or bool(there) != goes_there
            if moves and not kwargs.get("non_blocking", args[2] if len(args) > 2 else False):
                self.waits.append(f"{func} in {_place()}")
            return
        if there and func in _READS:
            self.waits.append(f"{func} in {_place()}")
        if there and func in _INDEXED:
            masks = [each for each in args[1] if each is not None and each.dtype in (torch.bool, torch.uint8)]
            if masks or any(not isinstance(each, FakeCudaTensor) for each in args[1] if each is not None):
                self.waits.append(f"{func} in {_place()}")
            return
        if there and any(each.ndim for each in here):
            shapes = ", ".join(f"{each.device} {list(each.shape)}" for each in [*there, *here])
            raise RuntimeError(f"Expected all tensors to be on the same device ({func}: {shapes})")


class FakeAutocast(TorchFunctionMode):
    """Casts what products are made of, as autocast would if C++ found CUDA in the tensors."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self._dtype = dtype

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.conv2d, torch._C._nn.linear, torch.matmul, torch.addmm):
            args, kwargs = tree_map(self._cast, (args, kwargs))
        return func(*args, **(kwargs or {}))

    def _cast(self, each: Any) -> Any:
        return each.to(self._dtype) if isinstance(each, Tensor) and each.is_floating_point() else each


def _place() -> str:
    """Return the file and function of transferkit that is at work."""
    frame = sys._getframe()
    while frame is not None and "/transferkit/" not in frame.f_code.co_filename:
        frame = frame.f_back
    return "" if frame is None else f"{Path(frame.f_code.co_filename).name}:{frame.f_code.co_name}"


def _values_of(each: Any) -> Any:
    return each.values if isinstance(each, FakeCudaTensor) else each


def forget() -> None:
    """Drop the small tensors that are kept on a device."""
    for kept in (normalize._along_rows, normalize._levels_on, resample._taps_on):
        kept.cache_clear()


@contextlib.contextmanager
def fake_cuda() -> Iterator[FakeCuda]:
    """Have the device ``"cuda:0"`` for as long as the context lasts, in this thread alone."""

    def staged(pixels: Any, chosen: Any, device: torch.device) -> Iterator[device_pixels.Staged]:
        for indices in chosen:
            groups = pixels.groups(indices)
            moved = [each._replace(images=device_pixels.to_device(each.images, device)) for each in groups]
            yield device_pixels.Staged(indices, moved)

    patches = {
        "torch.cuda._lazy_init": lambda: None,
        "torch.cuda.device_count": lambda: 1,
        "torch.cuda.get_device_capability": lambda device=None: (9, 0),
        "torch.cuda.get_device_name": lambda device=None: "fake",
        "torch.cuda.mem_get_info": lambda device=None: (2**34, 2**34),
        "torch.cuda.empty_cache": lambda: None,
        "torch.cuda.is_bf16_supported": lambda *_: True,
        "torch.cuda.amp.common.amp_definitely_not_available": lambda: False,
        "torch.cuda.get_rng_state": lambda device=None: torch.get_rng_state(),
        "torch.cuda.set_rng_state": lambda state, device=None: None,
        "torch.cuda.default_generators": (torch.Generator(),),
        "transferkit.runtime.Execution.autocast": lambda self: (
            contextlib.nullcontext() if self.precision == "fp32" else FakeAutocast(self.dtype)
        ),
        # Streams are CUDA's own, and modes belong to one thread.
        "transferkit.loading.device_pixels.staged": staged,
        "transferkit.loading.device_pixels.prefetched": lambda batches: batches,
    }
    with contextlib.ExitStack() as stack:
        for name, value in patches.items():
            stack.enter_context(mock.patch(name, value))
        # The CPU lacks cuDNN's own operations; threads of autograd belong to devices that are there.
        stack.enter_context(torch.backends.cudnn.flags(enabled=False))
        stack.enter_context(torch.autograd.set_multithreading_enabled(False))
        # As for PyTorch's own fake tensors: no driver is asked for, and new tensors are moved last.
        torch._C._ensureCUDADeviceGuardSet()
        stack.callback(torch._C._set_only_lift_cpu_tensors, torch._C._only_lift_cpu_tensors())
        torch._C._set_only_lift_cpu_tensors(True)
        forget()
        stack.callback(forget)
        yield stack.enter_context(FakeCuda())
