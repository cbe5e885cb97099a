"""What the published reconstruction models are built from: attention, MLPs, norms, decoder blocks, the upsampler.

Numbers are kept in two ways. Matrices (`Linear`) live and multiply in the dtype that `use_dtype` gives them; norms,
learned tokens, the residual stream and everything after the transformer stay fp32. With fp32 matrices that is the
references' arithmetic; with bf16 ones it is half the memory at a small, bounded error.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from multiview.attention import attend, join_heads, split_heads

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

Step = Literal["self", "cross"]
Network = TypeVar("Network", bound=nn.Module)


_PIXELS = 64  # of the small pictures that `multiply_rows` makes of rows
_FEW_ROWS = 512  # with fewer, convolutions are no faster
_MLP_ROWS = 1024  # that go through an MLP together on the CPU, so that its wide middle stays in the processor's cache
_MOST_THREADS = 8  # a look at a coarse scan has some nine blocks


@cache
def mkl_is_slow() -> bool:
    """Whether torch's fp32 matrix products leave half of this processor unused.

    They are MKL's, which takes AVX2 kernels on processors of other makers, where oneDNN's convolutions use AVX-512.
    """
    wide = bool(_processor().get("avx512_f")) and "AMD" in str(_processor().get("cpu_name"))
    return wide and torch.backends.mkldnn.is_available()


@cache
def multiplies_bf16() -> bool:
    """Whether this processor has instructions for products of bf16 numbers; others are slower in bf16 than in fp32."""
    return bool(_processor().get("avx512_bf16") or _processor().get("amx_bf16"))


def _processor() -> dict[str, Any]:
    """What torch knows about the processor; nothing before torch 2.10."""
    ask: Callable[[], Mapping[str, Any]] = getattr(torch.cpu, "get_capabilities", dict)
    return dict(ask())


def multiply_rows(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`torch.nn.functional.linear` up to rounding, by the faster one of the two libraries that torch brings for it.

    In fp32 on the CPU, without gradients, a row is a pixel of a small picture and the product a 1 x 1 convolution where
    that is faster: about twice as fast on an AMD EPYC with AVX-512.

    Args:
        x: (..., in) float, of the dtype of ``weight``.
        weight: (out, in).
        bias: (out,) or None.

    Returns:
        (..., out).
    """
    count = x.numel() // max(x.shape[-1], 1)
    plain = x.dtype != torch.float32 or x.device.type != "cpu" or torch.is_grad_enabled()
    if plain or count < _FEW_ROWS or not mkl_is_slow():
        return F.linear(x, weight, bias)
    spare = -count % _PIXELS
    rows = F.pad(x.reshape(count, -1), (0, 0, 0, spare)) if spare else x.contiguous()
    pictures = rows.view(-1, 1, _PIXELS, x.shape[-1]).permute(0, 3, 1, 2)
    out = F.conv2d(pictures, weight[:, :, None, None].to(memory_format=torch.channels_last), bias)
    return out.permute(0, 2, 3, 1).reshape(-1, len(weight))[:count].view(*x.shape[:-1], len(weight))


def in_threads(function: Callable[[Tensor], Tensor], parts: Sequence[Tensor]) -> Tensor:
    """``function`` of each part, one after the other in one tensor, by as many threads as torch has, up to eight.

    Blocks that fit a processor's cache are too small to share: torch's threads wait for each other after every one of
    a block's thirty operations, and many times as long where something else runs on one of the cores. Here a thread
    does whole blocks on one core. What comes back does not depend on the number of threads.
    """
    count = torch.get_num_threads()
    if count == 1:
        return torch.cat([function(part) for part in parts])
    # Threads begin with gradients and without autocast, whatever their caller has.
    gradients, inference = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
    cast, to = torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")

    def as_called(work: Callable[..., Tensor], argument: Any) -> Tensor:
        with (
            torch.inference_mode(inference),
            torch.set_grad_enabled(gradients),
            torch.autocast("cpu", to, enabled=cast),
        ):
            return work(argument)

    try:
        threads = _threads(count, os.getpid())
        work = [threads.submit(as_called, function, part) for part in parts]
    except RuntimeError:  # no thread can begin: the interpreter's main thread is done already, or there are too many
        return torch.cat([function(part) for part in parts])
    try:
        found = [one.result() for one in work]
    finally:
        for one in work:
            one.cancel()
    try:
        joined = threads.submit(as_called, torch.cat, found)
    except RuntimeError:
        return torch.cat(found)
    return joined.result()


@cache
def _threads(count: int, process: int) -> ThreadPoolExecutor:
    """Threads whose torch operations stay on one core each; a forked process has none of its parent's, hence its id."""
    from concurrent.futures import ThreadPoolExecutor

    workers = min(count, _MOST_THREADS)
    ready = threading.Barrier(workers + 1)

    def begin() -> None:
        torch.get_num_threads()  # a thread takes over the process's number once, now
        torch.set_num_threads(1)  # for this thread, and for threads that begin later
        ready.wait()

    threads = ThreadPoolExecutor(workers, "trilift-blocks", begin)
    try:
        for _ in range(workers):
            threads.submit(int)
        ready.wait()
    except BaseException:
        ready.abort()  # those that began would wait for ever, and Python for them
        raise
    finally:
        torch.set_num_threads(count)  # for threads that begin later
    return threads


def silu_rows(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """SiLU of `multiply_rows`, in one pass over the numbers where torch brings that.

    On the CPU, without gradients, from some rows on. SiLU alone takes as long as a product of 64 x 64 in bf16; inside
    oneDNN's product it costs half of that, and rounds once instead of twice.
    """
    fused = _fused_silu() if x.device.type == "cpu" and not torch.is_grad_enabled() else None
    pays = multiplies_bf16() if x.dtype == torch.bfloat16 else x.dtype == torch.float32 and mkl_is_slow()
    if fused is None or not pays or x.numel() < _FEW_ROWS * max(x.shape[-1], 1):
        return F.silu(multiply_rows(x, weight, bias), inplace=not torch.is_grad_enabled())
    return fused(x, weight, bias, "swish", [], "")


@cache
def _fused_silu() -> Callable[..., Tensor] | None:
    """oneDNN's product with SiLU, where torch has it.

    It is torch's own, made for its compiler and named nowhere else, so that it is tried first and its answer looked at.
    """
    x, weight = torch.linspace(-3, 3, 32 * 16).view(32, 16), torch.linspace(-1, 1, 16 * 16).view(16, 16).sin()
    try:
        fused: Callable[..., Tensor] = torch.ops.mkldnn._linear_pointwise
        with torch.no_grad():
            for dtype, off in ((torch.float32, 1e-4), (torch.bfloat16, 0.1)):
                found = fused(x.to(dtype), weight.to(dtype), weight[0].to(dtype), "swish", [], "")
                if not torch.allclose(found.float(), F.silu(F.linear(x, weight, weight[0])), rtol=off, atol=off):
                    return None
    except (AttributeError, RuntimeError, TypeError):
        return None
    return fused


class Linear(nn.Linear):
    """A linear layer that takes input of any float dtype and multiplies in its own."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) → (..., out) in the dtype of the weight."""
        return multiply_rows(x.to(self.weight.dtype), self.weight, self.bias)


def use_dtype(network: Network, dtype: torch.dtype) -> Network:
    """Give every `Linear` inside ``network`` the dtype, in place, and leave all other parameters fp32.

    Works on the ``meta`` device, before weights are there, as well as afterwards.
    """
    for module in network.modules():
        if isinstance(module, Linear):
            module.to(dtype)
    return network


def fingerprints(parameters: Iterable[Tensor]) -> list[Any]:
    """What changes when parameters do: for answers that are kept as long as these stay as they are."""
    # Parameters made in inference mode do not count their changes: they are like nothing, not even themselves.
    return [
        (p.untyped_storage()._cdata, object() if p.is_inference() else p._version, p.dtype, p.device)
        for p in parameters
    ]


def matrix_dtype(network: nn.Module) -> torch.dtype:
    """The dtype of the first `Linear` inside ``network``; fp32 when there is none."""
    return next((m.weight.dtype for m in network.modules() if isinstance(m, Linear)), torch.float32)


class Attention(nn.Module):
    """Multi-head attention of tokens to themselves or to a context, without mask; scale head_width ** -0.5.

    Args:
        width: D of the tokens, a multiple of ``heads``.
        heads: number of heads.
        context_width: E of the context; D when the tokens attend to themselves.
        bias: whether query, key and value have one.
        out_bias: whether the output projection has one.
    """

    def __init__(
        self, width: int, heads: int, context_width: int | None = None, *, bias: bool = False, out_bias: bool = False
    ) -> None:
        super().__init__()
        self.heads = heads
        self.query = Linear(width, width, bias=bias)
        self.key = Linear(context_width or width, width, bias=bias)
        self.value = Linear(context_width or width, width, bias=bias)
        self.out = Linear(width, width, bias=out_bias)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Tokens (B, L, D), context (B, M, E) or None for the tokens themselves → (B, L, D).

        One set of tokens (1, L, D) may attend to many contexts: its queries are worked out once.
        """
        x = x.to(self.query.weight.dtype)
        context = x if context is None else context.to(x.dtype)
        query, key, value = (
            split_heads(t, self.heads) for t in (self.query(x), self.key(context), self.value(context))
        )
        if len(query) < len(key):
            query = query.expand(len(key), -1, -1, -1)
        return self.out(join_heads(attend(query, key, value)))


def _by_rows(work: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """``work(x)`` of something that treats rows alike: (..., D) → (..., E).

    On the CPU, without gradients, some rows at a time. What it makes in between is then the next step's from the cache,
    and never so large that the system has to be asked for it.
    """
    count = x.numel() // max(x.shape[-1], 1)
    if x.device.type != "cpu" or torch.is_grad_enabled() or count <= _MLP_ROWS:
        return work(x)
    return torch.cat([work(rows) for rows in x.reshape(count, -1).split(_MLP_ROWS)]).unflatten(0, x.shape[:-1])


class GeluMlp(nn.Module):
    """Linear, exact GELU, linear."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.expand, self.shrink = Linear(width, hidden), Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) → (..., D)."""
        return _by_rows(lambda rows: self.shrink(F.gelu(self.expand(rows))), x)


class GegluMlp(nn.Module):
    """Linear to twice the hidden width, of which the first half is gated by the GELU of the second; linear.

    Source:
        Shazeer 2020 (arXiv 2002.05202), equation 6, with the value first and the gate second.
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.expand, self.shrink = Linear(width, 2 * hidden), Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) → (..., D)."""
        return _by_rows(self._gated, x)

    def _gated(self, x: Tensor) -> Tensor:
        value, gate = self.expand(x).chunk(2, -1)
        return self.shrink(value * F.gelu(gate))


class ModulatedNorm(nn.LayerNorm):
    """A layer norm that a condition may shift and scale: LN(x) * (1 + scale) + shift.

    Args:
        width: D.
        eps: added to the variance.
        condition_width: width of the condition, or None for a plain layer norm.
    """

    def __init__(self, width: int, eps: float, condition_width: int | None = None) -> None:
        super().__init__(width, eps)
        self.modulation = None if condition_width is None else Linear(condition_width, 2 * width)
        self._kept: tuple[Tensor, list[Any], tuple[Tensor, Tensor]] | None = None

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """Tokens (B, L, D) and condition (B, condition_width), not used by a plain norm → (B, L, D)."""
        if self.modulation is None or condition is None:
            return super().forward(x)
        if len(condition) == 1 and not torch.is_grad_enabled():
            return F.layer_norm(x, self.normalized_shape, *self._folded(condition), self.eps)
        shift, scale = self._modulated(condition)[:, None].chunk(2, -1)
        return super().forward(x) * (1 + scale) + shift

    def _modulated(self, condition: Tensor) -> Tensor:
        assert self.modulation is not None, "asked for with one only"
        return self.modulation(F.silu(condition)).float()

    def _folded(self, condition: Tensor) -> tuple[Tensor, Tensor]:
        """Weight and bias of the plain norm that a single condition makes of this one.

        They are kept for as long as the very same condition is given, as by a model that tells its network one camera.
        """
        sources = (self.weight, self.bias, *(() if self.modulation is None else self.modulation.parameters()))
        key = fingerprints(sources)
        kept = self._kept  # read once: another thread may put its own in between
        if kept is None or kept[0] is not condition or kept[1] != key:
            shift, scale = self._modulated(condition)[0].chunk(2, -1)
            kept = condition, key, (self.weight * (1 + scale), self.bias * (1 + scale) + shift)
            self._kept = kept
        return kept[2]


@dataclass(frozen=True)
class BlockConfig:
    """One block of a plane decoder.

    Attributes:
        width: D of the plane tokens.
        heads: of both attentions.
        context_width: E of the image tokens.
        norm_eps: of the block's three norms.
        order: which attention comes first; the MLP is always last.
        mlp: kind of MLP, hidden width 4 * D.
        out_bias: whether the attentions' output projections have a bias.
        condition_width: of what modulates the norms, or None.
    """

    width: int
    heads: int
    context_width: int
    norm_eps: float
    order: tuple[Step, Step] = ("cross", "self")
    mlp: Literal["gelu", "geglu"] = "gelu"
    out_bias: bool = False
    condition_width: int | None = None


class DecoderBlock(nn.Module):
    """Plane tokens attend to themselves and to the image tokens, in the config's order, and then think.

    Every step is x += step(norm(x)).
    """

    def __init__(self, config: BlockConfig) -> None:
        super().__init__()
        c = config
        self.order = c.order
        self.norm_self, self.norm_cross, self.norm_mlp = (
            ModulatedNorm(c.width, c.norm_eps, c.condition_width) for _ in range(3)
        )
        self.attend_self = Attention(c.width, c.heads, out_bias=c.out_bias)
        self.attend_cross = Attention(c.width, c.heads, c.context_width, out_bias=c.out_bias)
        self.mlp = (GegluMlp if c.mlp == "geglu" else GeluMlp)(c.width, 4 * c.width)

    def forward(
        self, tokens: Tensor, context: Tensor, condition: Tensor | None = None, *, begun: bool = False
    ) -> Tensor:
        """Plane tokens (B or 1, L, D), image tokens (B, M, E), condition (B, condition_width) or None → (B, L, D).

        With ``begun`` the tokens are past the first step already.
        """
        for step in self.order[begun:]:
            if step == "self":
                tokens = tokens + self.attend_self(self.norm_self(tokens, condition))
            else:
                tokens = tokens + self.attend_cross(self.norm_cross(tokens, condition), context)
        return tokens + self.mlp(self.norm_mlp(tokens, condition))


class CameraEmbedding(nn.Module):
    """Sixteen camera numbers → the condition of modulated norms: linear, SiLU, linear."""

    def __init__(self, width: int, numbers: int = 16) -> None:
        super().__init__()
        self.expand, self.mix = Linear(numbers, width), Linear(width, width)

    def forward(self, numbers: Tensor) -> Tensor:
        """(B, 16) → (B, width) float32."""
        return self.mix(F.silu(self.expand(numbers))).float()


class PlaneUpsampler(nn.ConvTranspose2d):
    """Plane tokens → planes of twice the side: one 2 x 2 transposed convolution with stride 2, shared by the planes.

    It is written as the matrix product that it is, in fp32, so that no convolution library rounds to TF32.

    Args:
        width: D of the tokens.
        channels: C of the planes.
    """

    def __init__(self, width: int, channels: int) -> None:
        super().__init__(width, channels, kernel_size=2, stride=2)

    def forward(self, tokens: Tensor, output_size: list[int] | None = None) -> Tensor:
        """Tokens (B, 3 * s * s, D), index = plane * s * s + row * s + column → planes (B, 3, C, 2s, 2s) float32."""
        side = round((tokens.shape[1] / 3) ** 0.5)
        weight = self.weight.float()  # (D, C, 2, 2)
        cells = (tokens.float() @ weight.flatten(1)).unflatten(-1, weight.shape[1:]).unflatten(1, (3, side, side))
        # (B, 3, row, column, C, 2, 2) → (B, 3, C, row, 2, column, 2)
        planes = cells.permute(0, 1, 4, 2, 5, 3, 6).flatten(5, 6).flatten(3, 4)
        return planes if self.bias is None else planes + self.bias.float()[:, None, None]
