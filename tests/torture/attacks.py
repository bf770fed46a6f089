"""Files that run a command when they are unpickled: each makes a file or folder, the canary."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import struct
import tarfile
import textwrap
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn

EXTENSION = 240
"""The code under which ``copyreg`` must know ``posix.system`` for the attacks by extension."""


def text(value: str) -> bytes:
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def short(value: str) -> bytes:
    data = value.encode()
    return b"\x8c" + bytes([len(data)]) + data


def touch(canary: Path) -> str:
    return f"touch '{canary}'"


def python(canary: Path) -> str:
    return f"__import__('os').system({touch(canary)!r})"


SYSTEM = b"cposix\nsystem\n"


def by_global(canary):
    return b"\x80\x02" + SYSTEM + text(touch(canary)) + b"\x85R."


def by_global_as_text(canary):
    return SYSTEM + b"(S" + repr(touch(canary)).encode() + b"\ntR."


def by_stack_global(canary):
    return b"\x80\x04" + short("posix") + short("system") + b"\x93" + text(touch(canary)) + b"\x85R."


def by_stack_global_from_the_memo(canary):
    decoys = short("posix") + b"\x940" + short("system") + b"\x940" + short("torch") + short("Size") + b"00"
    return b"\x80\x04" + decoys + b"h\x00h\x01\x93" + text(touch(canary)) + b"\x85R."


def by_inst(canary):
    return b"(" + text(touch(canary)) + b"iposix\nsystem\n."


def by_obj(canary):
    lazy = b"(cbuiltins\nmap\n" + SYSTEM + text(touch(canary)) + b"\x85o"
    return b"(cbuiltins\ntuple\n" + lazy + b"o."


def by_newobj(canary):
    lazy = b"cbuiltins\nmap\n" + SYSTEM + text(touch(canary)) + b"\x85\x86\x81"
    return b"\x80\x02cbuiltins\ntuple\n" + lazy + b"\x85\x81."


def by_newobj_ex(canary):
    lazy = b"cbuiltins\nmap\n" + SYSTEM + text(touch(canary)) + b"\x85\x86\x81"
    return b"\x80\x04cbuiltins\ntuple\n" + lazy + b"\x85}\x92."


def by_build(canary):
    made = b"\x80\x02ccollections\nOrderedDict\n)R"
    return made + b"}" + text("__setstate__") + SYSTEM + b"sb" + text(touch(canary)) + b"b."


def by_eval(canary):
    return b"\x80\x02c__builtin__\neval\n" + text(python(canary)) + b"\x85R."


def by_exec(canary):
    return b"\x80\x03cbuiltins\nexec\n" + text(python(canary)) + b"\x85R."


def by_subprocess(canary):
    arguments = b"]" + text("touch") + b"a" + text(str(canary)) + b"a"
    return b"\x80\x02csubprocess\ncheck_call\n" + arguments + b"\x85R."


def by_mkdir(canary):
    return b"\x80\x02cos\nmkdir\n" + text(str(canary)) + b"\x85R."


def by_attribute(canary):
    imported = b"cbuiltins\n__import__\n" + text("os") + b"\x85R"
    return (
        b"\x80\x02cbuiltins\ngetattr\n"
        + imported
        + text("system")
        + b"\x86R"
        + text(touch(canary))
        + b"\x85R."
    )


def by_nested_pickle(canary):
    inner = by_global(canary)
    return b"\x80\x03cpickle\nloads\nC" + bytes([len(inner)]) + inner + b"\x85R."


def by_storage_bytes(canary):
    """torch's own function that loads a storage from bytes, without asking for weights only."""
    inner = in_legacy(by_global(canary))
    data = b"B" + struct.pack("<I", len(inner)) + inner
    return b"\x80\x03ctorch.storage\n_load_from_bytes\n" + data + b"\x85R."


def by_rebuild(canary):
    """torch's own function that rebuilds a tensor by calling what it is given."""
    call = SYSTEM + b"ctorch\nTensor\n" + text(touch(canary)) + b"\x85N"
    return b"\x80\x02ctorch._tensor\n_rebuild_from_type_v2\n(" + call + b"tR."


def by_hub(canary):
    folder = canary.parent / "hub"
    folder.mkdir(exist_ok=True)
    (folder / "hubconf.py").write_text(
        textwrap.dedent(f"""
        import os
        os.system({touch(canary)!r})
        def model():
            return None
        """)
    )
    return b"\x80\x02ctorch.hub\n_load_local\n" + text(str(folder)) + text("model") + b"\x86R."


def by_extension(canary):
    return b"\x80\x02\x82" + bytes([EXTENSION]) + text(touch(canary)) + b"\x85R."


def by_list_item(canary):
    return b"\x80\x02]" + by_global(canary)[2:-1] + b"a."


def by_dict_value(canary):
    return b"\x80\x02}" + text("state_dict") + b"}" + text("fc.weight") + by_global(canary)[2:-1] + b"ss."


def by_dict_key(canary):
    return b"\x80\x02}" + by_global(canary)[2:-1] + text("value") + b"s."


def by_numpy_object(canary):
    return pickle.dumps(np.array([Evil(canary)], dtype=object), 2)


def by_persistent_id(canary):
    """Runs nothing by itself; a loader that asks its caller for the object might."""
    return b"\x80\x02" + by_global(canary)[2:-1] + text("storage") + b"\x86Q."


LIVE: tuple[Callable[[Path], bytes], ...] = (
    by_global,
    by_global_as_text,
    by_stack_global,
    by_stack_global_from_the_memo,
    by_inst,
    by_obj,
    by_newobj,
    by_newobj_ex,
    by_build,
    by_eval,
    by_exec,
    by_subprocess,
    by_mkdir,
    by_attribute,
    by_nested_pickle,
    by_storage_bytes,
    by_rebuild,
    by_hub,
    by_extension,
    by_list_item,
    by_dict_value,
    by_dict_key,
    by_numpy_object,
)
"""Pickles that do touch the canary when ``pickle.loads`` is let loose on them."""


# --- what needs something that is not here, or what a loader would have to do for them


def by_persistent_text(canary):
    return b"P" + str(canary).encode() + b"\n."


def by_torch_load(canary):
    return b"\x80\x02ctorch\nload\n" + text(str(canary)) + b"\x85R."


def by_torch_load_named_on_the_stack(canary):
    return b"\x80\x04" + short("torch") + short("load") + b"\x93" + text(str(canary)) + b"\x85R."


def by_remote_call(canary):
    return b"\x80\x02ctorch.distributed.rpc.internal\n_run_function\n" + SYSTEM + b"\x85R."


def by_library(canary):
    return b"\x80\x02ctorch._ops\n_Ops.load_library\n" + text(str(canary)) + b"\x85R."


def by_dill(canary):
    return (
        b"\x80\x04cdill._dill\n_create_function\n(cdill._dill\n_load_type\n" + text("CodeType") + b"\x85RtR."
    )


def by_joblib(canary):
    return b"\x80\x04cjoblib.numpy_pickle\nNumpyArrayWrapper\n)\x81}" + text("subclass") + SYSTEM + b"sb."


def by_device(canary):
    """Moves a tensor to a device that the file names."""
    return b"\x80\x02ctorch._utils\n_rebuild_device_tensor_from_cpu_tensor\n(NNNNtR."


def by_bytes_without_end(canary):
    """Not code, but 2 GB of memory for 40 bytes of file."""
    return b"\x80\x02c__builtin__\nbytearray\nJ\xff\xff\xff\x7f\x85R."


INERT: tuple[Callable[[Path], bytes], ...] = (
    by_persistent_id,
    by_torch_load,
    by_torch_load_named_on_the_stack,
    by_remote_call,
    by_library,
    by_dill,
    by_joblib,
    by_device,
    by_bytes_without_end,
)
"""Pickles that would run or waste something in another loader."""


# --- what a pickle can be packed in


class Evil:
    """Unpickling this makes a folder."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self):
        return os.mkdir, (str(self.canary),)


def in_zip(
    pickled: bytes, *, also: tuple[tuple[str, bytes], ...] = (), compression: int = zipfile.ZIP_STORED
) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, data in (("data.pkl", pickled), ("byteorder", b"little"), ("version", b"3\n"), *also):
            archive.writestr(f"archive/{name}", data)
    return buffer.getvalue()


def in_legacy(pickled: bytes) -> bytes:
    head = (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True, "protocol_version": 1001, "type_sizes": {}})
    return b"".join(pickle.dumps(each, 2) for each in head) + pickled + pickle.dumps([], 2)


def in_tar(pickled: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            entry = tarfile.TarInfo(name)
            entry.size = len(pickled)
            archive.addfile(entry, io.BytesIO(pickled))
    return buffer.getvalue()


def in_torchscript(pickled: bytes) -> bytes:
    return in_zip(
        pickled, also=(("constants.pkl", pickled), ("code/__torch__.py", b"def forward(self): pass"))
    )


def in_a_second_entry(pickled: bytes) -> bytes:
    return in_zip(pickle.dumps({}, 2), also=(("DATA.PKL", pickled),))


def in_a_compressed_zip(pickled: bytes) -> bytes:
    return in_zip(pickled, compression=zipfile.ZIP_DEFLATED)


def in_safetensors_metadata(pickled: bytes) -> bytes:
    header = f'{{"__metadata__": {{"pickle": "{pickled.hex()}", "__reduce__": "posix.system"}}}}'.encode()
    return struct.pack("<Q", len(header)) + header


def in_npy(pickled: bytes) -> bytes:
    header = b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }".ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + pickled


def in_npz(pickled: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("arr_0.npy", in_npy(pickled))
    return buffer.getvalue()


def plain(pickled: bytes) -> bytes:
    return pickled


USUAL = (in_zip, in_legacy, plain)
ODD = (
    *(in_tar, in_torchscript, in_a_second_entry, in_a_compressed_zip, in_safetensors_metadata),
    *(in_npy, in_npz, gzip.compress),
)


def attacks(canary: Path) -> dict[str, bytes]:
    """Return every attack by name: each pickle in the usual packings, and one in each odd one."""
    found = {
        f"{make.__name__} {pack.__name__}": pack(make(canary)) for make in (*LIVE, *INERT) for pack in USUAL
    }
    found |= {f"by_global {pack.__name__}": pack(by_global(canary)) for pack in ODD}
    for suffix, old in (("", False), (" in the older format", True)):
        for name, value in (("an object", Evil(canary)), ("a whole module", nn.Sequential(nn.Linear(2, 2)))):
            buffer = io.BytesIO()
            torch.save({"a": value}, buffer, _use_new_zipfile_serialization=not old)
            found[f"{name}{suffix}"] = buffer.getvalue()
    return found
