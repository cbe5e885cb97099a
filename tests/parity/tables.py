"""The published models' tensors, name by name with shapes, written out from the facts and not from our code."""

from __future__ import annotations

from tests.parity.fill import with_endings

Table = dict[str, tuple[int, ...]]


def dino_table(front: str, width: int, layers: int, mlp: int, patch: int, table_side: int) -> Table:
    """A DINO vision transformer as transformers writes it up to 4.57, without pooler."""
    embeddings = f"{front}.embeddings"
    table: Table = {
        f"{embeddings}.cls_token": (1, 1, width),
        f"{embeddings}.position_embeddings": (1, 1 + table_side**2, width),
        **with_endings([f"{embeddings}.patch_embeddings.projection"], (width, 3, patch, patch), (width,)),
        **with_endings([f"{front}.layernorm"], (width,), (width,)),
    }
    for i in range(layers):
        layer = f"{front}.encoder.layer.{i}"
        square = [f"{layer}.attention.attention.{part}" for part in ("query", "key", "value")]
        table |= with_endings([*square, f"{layer}.attention.output.dense"], (width, width), (width,))
        table |= with_endings([f"{layer}.intermediate.dense"], (mlp, width), (mlp,))
        table |= with_endings([f"{layer}.output.dense"], (width, mlp), (width,))
        table |= with_endings([f"{layer}.layernorm_before", f"{layer}.layernorm_after"], (width,), (width,))
    return table


def triposr_table(
    vit: tuple[int, int, int, int, int], channels: int, layers: int, plane_size: int, plane_channels: int,
    decoder: tuple[int, int],
) -> Table:  # fmt: skip
    """TripoSR.

    Args:
        vit: width, layers, MLP width, patch size and side of the position table.
        channels, layers: of the plane transformer.
        plane_size, plane_channels: tokens per side; channels of the planes.
        decoder: width and number of hidden layers.
    """
    d, e = channels, vit[0]
    table = dino_table("image_tokenizer.model", *vit)
    table |= with_endings(["image_tokenizer.model.pooler.dense"], (e, e), (e,))
    table["tokenizer.embeddings"] = (3, d, plane_size, plane_size)
    table |= with_endings(["backbone.norm"], (d,), (d,))
    table |= with_endings(["backbone.proj_in", "backbone.proj_out"], (d, d), (d,))
    for i in range(layers):
        block = f"backbone.transformer_blocks.{i}"
        table |= with_endings([f"{block}.norm{k}" for k in (1, 2, 3)], (d,), (d,))
        table |= with_endings([f"{block}.attn1.to_{part}" for part in "qkv"] + [f"{block}.attn2.to_q"], (d, d), None)
        table |= with_endings([f"{block}.attn2.to_{part}" for part in "kv"], (d, e), None)
        table |= with_endings([f"{block}.attn{k}.to_out.0" for k in (1, 2)], (d, d), (d,))
        table |= with_endings([f"{block}.ff.net.0.proj"], (8 * d, d), (8 * d,))
        table |= with_endings([f"{block}.ff.net.2"], (d, 4 * d), (d,))
    table |= with_endings(["post_processor.upsample"], (d, plane_channels, 2, 2), (plane_channels,))
    width, hidden = decoder
    table |= with_endings(["decoder.layers.0"], (width, 3 * plane_channels), (width,))
    table |= with_endings([f"decoder.layers.{2 * i}" for i in range(1, hidden)], (width, width), (width,))
    return table | with_endings([f"decoder.layers.{2 * hidden}"], (4, width), (4,))


TRIPOSR_FULL = triposr_table((768, 12, 3072, 16, 14), 1024, 16, 32, 40, (64, 9))
TRIPOSR_SMALL = triposr_table((48, 3, 96, 16, 4), 64, 2, 4, 6, (16, 9))


def instantmesh_table(
    vit: tuple[int, int, int, int, int], width: int, layers: int, plane_size: int, plane_channels: int
) -> Table:
    """InstantMesh's NeRF variants without the prefix ``lrm_generator.``; arguments as in `triposr_table`."""
    d, e, c = width, vit[0], plane_channels
    table = dino_table("encoder.model", *vit)
    adaptive = [f"encoder.model.encoder.layer.{i}.adaLN_modulation.1" for i in range(vit[1])]
    table |= with_endings(adaptive, (4 * e, e), (4 * e,))
    table |= with_endings(["encoder.camera_embedder.0"], (e, 16), (e,))
    table |= with_endings(["encoder.camera_embedder.2"], (e, e), (e,))
    table["transformer.pos_embed"] = (1, 3 * plane_size**2, d)
    for i in range(layers):
        layer = f"transformer.layers.{i}"
        table |= with_endings([f"{layer}.norm{k}" for k in (1, 2, 3)], (d,), (d,))
        table |= {
            f"{layer}.cross_attn.q_proj_weight": (d, d),
            f"{layer}.cross_attn.k_proj_weight": (d, e),
            f"{layer}.cross_attn.v_proj_weight": (d, e),
            f"{layer}.self_attn.in_proj_weight": (3 * d, d),
        }
        table |= with_endings([f"{layer}.{kind}_attn.out_proj" for kind in ("cross", "self")], (d, d), None)
        table |= with_endings([f"{layer}.mlp.0"], (4 * d, d), (4 * d,))
        table |= with_endings([f"{layer}.mlp.3"], (d, 4 * d), (d,))
    table |= with_endings(["transformer.norm"], (d,), (d,))
    table |= with_endings(["transformer.deconv"], (d, c, 2, 2), (c,))
    table |= with_endings(["synthesizer.decoder.net.0"], (64, 3 * c), (64,))
    table |= with_endings(["synthesizer.decoder.net.2", "synthesizer.decoder.net.4"], (64, 64), (64,))
    return table | with_endings(["synthesizer.decoder.net.6"], (4, 64), (4,))


INSTANTMESH_BASE = instantmesh_table((768, 12, 3072, 16, 14), 1024, 12, 32, 40)
INSTANTMESH_LARGE = instantmesh_table((768, 12, 3072, 16, 14), 1024, 16, 32, 80)
INSTANTMESH_SMALL = instantmesh_table((48, 3, 96, 16, 4), 64, 2, 4, 6)
