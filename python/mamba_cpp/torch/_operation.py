"""An operation of the library's as one of PyTorch's: traced where someone traces, plain where nobody does."""

from __future__ import annotations

from typing import Any, Callable, Optional, Sequence, Tuple

import torch
from torch import Tensor

from .. import _core


def is_plain(tensors: Tuple[Optional[Tensor], ...]) -> bool:
    """Whether nobody sees what is done: no compiler, no mode of dispatch, no subclass of Tensor.
    (The tests of torch._C are what PyTorch's own Python asks.)"""
    if (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._len_torch_function_stack() > 0
    ):
        return False
    return _core.are_exactly(tensors, Tensor, torch.nn.Parameter)


def wants_gradient(tensors: Sequence[Optional[Tensor]]) -> bool:
    if not torch.is_grad_enabled():
        return False
    for tensor in tensors:
        if tensor is not None and tensor.requires_grad:
            return True
    return False


def readable(gradient: Tensor) -> Tensor:
    """Autograd makes gradients of any strides; a view of the library's is dense after batch and time."""
    dense = gradient.stride(-1) == 1 and (gradient.dim() < 4 or gradient.stride(2) == gradient.shape[3])
    return gradient if dense else gradient.contiguous()


def _empty_like(tensor: Optional[Tensor], other: Tensor) -> Tensor:
    """What an operator gives is always there: an absent operand's gradient is a tensor of nothing."""
    return other.new_empty((0,)) if tensor is None else tensor.new_empty(tensor.shape)


def operation(
    name: str,
    tensors: str,
    options: str,
    outputs: Callable[..., Tuple[Tensor, Tensor]],
    kept: Callable[..., Tensor],
    run: Callable[..., None],
    grad: Callable[..., None],
    resets: bool = True,
) -> Callable[..., Tuple[Tensor, Tensor]]:
    """An operation, called in one of three ways that do the same.

    It is registered as a custom operator, torch.ops.mamba_cpp.NAME, with a fake implementation and a
    gradient that is an operator too: torch.compile, torch.export and whatever else traces see these.
    PyTorch takes tens of microseconds to dispatch such an operator and a hundred if a gradient is
    wanted, more than the library does for a step of an agent. So a plain call goes past it: straight
    to the library without a gradient, else through an autograd.Function of the same parts.

    name      of the operator
    tensors   its tensors as a schema says them, the reset last where there are `resets`; the first has
              the shape of y
    options   its other arguments, said so
    outputs   (tensors, options) -> y and the final state, empty; of an operation that has no state
              this is a tensor of nothing
    kept      (tensors, options, keep) -> what backward needs, empty; of no elements without `keep`
    run       (y, final_state, tensors, options, kept or None): computes them
    grad      (gradients, tensors, options, kept, dy, dfinal_state): computes the gradient of every
              tensor but the reset; that of an absent one is to be left alone
    """
    functorch = torch._C._are_functorch_transforms_active
    count = tensors.count("Tensor")  # an argument list is these, the options, and keep
    differentiable = count - 1 if resets else count

    def fake(*args: Any) -> Tuple[Tensor, Tensor, Tensor]:
        given, chosen, keep = args[:count], args[count:-1], args[-1]
        return (*outputs(given, chosen), kept(given, chosen, keep))

    def forward(*args: Any) -> Tuple[Tensor, Tensor, Tensor]:
        y, final_state, states = fake(*args)
        run(y, final_state, args[:count], args[count:-1], states if args[-1] else None)
        return y, final_state, states

    # Its arguments: the same without keep, then kept, dy and dfinal_state.
    def fake_grad(*args: Any) -> Tuple[Tensor, ...]:
        return tuple([_empty_like(tensor, args[0]) for tensor in args[:differentiable]])

    def grad_forward(*args: Any) -> Tuple[Tensor, ...]:
        made = fake_grad(*args)
        states, dy, dfinal_state = args[-3:]
        grad(made, args[:count], args[count:-3], states, readable(dy), dfinal_state)
        return made

    def setup_context(ctx: Any, inputs: Tuple[Any, ...], output: Tuple[Tensor, ...]) -> None:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*inputs[:count], output[2])
        ctx.options, ctx.kept = inputs[count:-1], inputs[-1]

    def backward(ctx: Any, dy: Optional[Tensor], dfinal_state: Optional[Tensor], _: Any) -> Any:
        if not ctx.kept:
            raise RuntimeError(f"mamba_cpp::{name}: expected keep=True where a gradient is wanted, got False")
        *given, states = ctx.saved_tensors
        if dy is None:  # only the final state was used
            dy = torch.zeros_like(given[0])
        args = (*given, *ctx.options, states, dy, dfinal_state)
        unseen = is_plain((*given, dy)) and not functorch()
        made = grad_forward(*args) if unseen else grad_op(*args)
        gradients = [None if x is None else dx for x, dx in zip(given, made)]
        return (*gradients, *[None] * (count - differentiable + len(ctx.options) + 1))

    # For transforms of functorch PyTorch asks for forward and setup_context apart, and takes some ten
    # microseconds to put them together.
    def forward_and_save(ctx: Any, *args: Any) -> Tuple[Tensor, Tensor, Tensor]:
        made = forward(*args)
        ctx.mark_non_differentiable(made[2])
        setup_context(ctx, args, made)
        return made

    three, many = ", ".join(["Tensor"] * 3), ", ".join(["Tensor"] * differentiable)
    between = f", {options}" if options else ""
    op = torch.library.custom_op(
        f"mamba_cpp::{name}", forward, mutates_args=(),
        schema=f"({tensors}{between}, bool keep) -> ({three})",
    )
    op.register_fake(fake)
    grad_op = torch.library.custom_op(
        f"mamba_cpp::{name}_backward", grad_forward, mutates_args=(),
        schema=f"({tensors}{between}, Tensor kept, Tensor dy, Tensor? dfinal_state) -> ({many})",
    )
    grad_op.register_fake(fake_grad)
    op.register_autograd(backward, setup_context=setup_context)
    once = {"backward": staticmethod(torch.autograd.function.once_differentiable(backward))}
    of_torch = (torch.autograd.Function,)
    plain_function: Any = type(name, of_torch, {"forward": staticmethod(forward_and_save), **once})
    function: Any = type(
        name, of_torch,
        {"forward": staticmethod(forward), "setup_context": staticmethod(setup_context), **once},
    )

    def call(*args: Any) -> Tuple[Tensor, Tensor]:
        given = args[:count]
        keep = wants_gradient(given)
        if not is_plain(given):
            y, final_state, _ = op(*args, keep)
        elif functorch():  # which sees the Function, not the operator
            y, final_state, _ = function.apply(*args, True)
        elif keep:
            y, final_state, _ = plain_function.apply(*args, True)
        else:
            chosen = args[count:]
            y, final_state = outputs(given, chosen)
            run(y, final_state, given, chosen, None)
        return y, final_state

    return call
