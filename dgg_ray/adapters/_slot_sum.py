"""All slots of a linear layer in two matrix products, with gradients for the newest one alone."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor


class Frozen(NamedTuple):
    """The base on which a slot is trained: the frozen slots, and the weights and the scale of all.

    a: (K·r, d_in). b: (d_out, K·r). columns: broadcast to (…, (K + 1) r); None is 1.
    """

    a: Tensor
    b: Tensor
    columns: Tensor | None
    scale: float


class SlotSum(torch.autograd.Function):
    """z = y + s · ((x Aᵀ) ⊙ w) Bᵀ,  A and B: the frozen slots and, after them, the trained one.

    symbol  argument                shape
    x, y    x, result               (…, d_in), (…, d_out)
    A       frozen.a and then a     (K·r, d_in) and (r, d_in)
    B       frozen.b and then b     (d_out, K·r) and (d_out, r)
    w, s    columns, scale

    Autograd on slots side by side would read x and its gradient once for each, and on joined ones compute the
    gradients of frozen factors too. It has no second derivatives.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, result: Tensor, a: Tensor, b: Tensor, frozen: Frozen) -> Tensor:
        kind = x.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
        all_a = torch.cat([frozen.a, a]).to(dtype)
        scaled_b = torch.cat([frozen.b, b], 1).mul_(frozen.scale).to(dtype)
        x = x.to(dtype)
        hidden, columns = x @ all_a.T, frozen.columns
        if columns is not None:
            columns = columns.to(dtype)
            hidden = hidden * columns
        flat, flat_result = hidden.flatten(0, -2), result.flatten(0, -2)
        if result.dtype == dtype:
            output = torch.addmm(flat_result, flat, scaled_b.T)
        else:
            output = (flat_result + flat @ scaled_b.T).to(result.dtype)
        ctx.save_for_backward(x, hidden[..., len(frozen.a) :], all_a, scaled_b, columns)
        ctx.scale, ctx.frozen = frozen.scale, len(frozen.a)
        return output.view(result.shape)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (of_output,) = gradients
        x, own_hidden, all_a, scaled_b, columns = ctx.saved_tensors
        flat = of_output.to(x.dtype).flatten(0, -2)  # (n, d_out)
        of_b = (flat.T @ own_hidden.flatten(0, -2)) * ctx.scale
        of_hidden = (flat @ scaled_b).view(*x.shape[:-1], -1)
        if columns is not None:
            of_hidden = of_hidden * columns
        of_a = of_hidden[..., ctx.frozen :].flatten(0, -2).T @ x.flatten(0, -2)
        of_x = of_hidden @ all_a if ctx.needs_input_grad[0] else None
        return of_x, of_output, of_a, of_b, None
