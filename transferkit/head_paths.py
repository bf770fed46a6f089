"""Where the head of a model is."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from transferkit.backbones.spec import find_spec, unwrapped
from transferkit.errors import SelectorError
from transferkit.module_tree import find_module, has_parameters, named_children, plain_name

# An entry of a new head's __dict__: how it is known again in a model without a spec.
HEAD_MARK = "_transferkit_head"

_USUAL_NAMES = ("fc", "classifier", "head", "heads")


def find_head(model: nn.Module) -> str:
    """Return the path of the module that gives the logits.

    A model with a spec has it there; where the user has put another module in place of the
    head, or of the container that it was in, that one is the head. Without a spec, a head that
    ``replace_head`` made is known again. Otherwise it is found by structure: by the first of
    these rules that finds any layer, which is a linear one or a 1 x 1 convolution. To find
    two is an error.

    1. The layer that ends the attribute called ``fc``, ``classifier``, ``head`` or ``heads``.
       What ends an ``nn.Sequential`` is its last child with parameters; in another
       container any child may do so.
    2. The layer that ends the model, if that is an ``nn.Sequential``.
    3. The only linear layer of a model that is something else.

    Args:
        model: Any module, compiled or not.

    Raises:
        SelectorError: There is no head, or it cannot be told from several candidates.

    >>> find_head(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)))
    '2'
    """
    spec = find_spec(model)
    if spec is not None:
        return _head_of_spec(model, spec.head)
    root = unwrapped(model)
    marked = [plain_name(path) for path, module in root.named_modules() if HEAD_MARK in module.__dict__]
    if len(marked) == 1:
        return marked[0]
    usual = [(name, child) for name, child in named_children(root) if name in _USUAL_NAMES]
    ends = [end for name, child in usual for end in _last_layers(child, name)]
    if not ends and isinstance(root, nn.Sequential):
        ends = _last_layers(root, "")
    linear = [
        plain_name(path)
        for path, module in root.named_modules()
        # The projection inside nn.MultiheadAttention is a Linear too, but never a head.
        if path and isinstance(module, nn.Linear) and not isinstance(module, NonDynamicallyQuantizableLinear)
    ]
    if not ends and not isinstance(root, nn.Sequential):
        ends = linear
    if len(ends) == 1:
        return ends[0]
    listed = ", ".join(repr(path) for path in (ends or linear)[-10:])
    raise SelectorError(
        f"The head of this {type(root).__name__} cannot be told from its structure: "
        + (f"the candidates are {listed}. " if listed else "it holds no linear layer. ")
        + "Name it with transferkit.attach_spec(model, head=...), "
        "or say what trains with transferkit.freeze(model, except_=...)."
    )


def _head_of_spec(model: nn.Module, path: str) -> str:
    """Return the path that a spec gives, or of the container that the user has replaced."""
    place = path
    while place:
        parent, _, name = place.rpartition(".")
        container = find_module(model, parent)
        if container is not None and find_module(model, place) is not None:
            siblings = list(named_children(container))
            after = siblings[[sibling for sibling, _ in siblings].index(name) + 1 :]
            # No layer follows a head in a Sequential, unless the user has put another one there.
            follows = any(_last_layers(child, "after") for _, child in after)
            if not (follows and parent and isinstance(container, nn.Sequential)):
                return place
        place = parent
    raise SelectorError(
        f"The spec of this {type(unwrapped(model)).__name__} says that the head is at {path!r}, where "
        "there is no module; name it anew with transferkit.attach_spec(model, head=...)."
    )


def _is_layer(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1))


def _last_layers(module: nn.Module, path: str) -> list[str]:
    """Return the paths of the layers that may give what a module gives."""
    if _is_layer(module):
        return [path] if path else []
    children = [(name, child) for name, child in named_children(module) if has_parameters(child)]
    if isinstance(module, nn.Sequential):
        children = children[-1:]
    # In other containers the order of registration need not be that of execution.
    prefix = f"{path}." if path else ""
    return [end for name, child in children for end in _last_layers(child, prefix + name)]
