"""Layers of the installed transformers as mixers: the name, the options and the weights of each.

Every function takes a layer and gives what :func:`zoo.mixers.build` and ``load_state_dict`` need. Weights are rows cut
and put in another order, never computed.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import zoo
from zoo.mixers import Mixer

Translated = tuple[str, dict[str, Any], dict[str, Tensor]]


def drawn_layer(layer: nn.Module) -> nn.Module:
    """The layer with numbers of which none is a special value; decays and steps lie about 0.05 to 1."""
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            if parameter.dim() > 1 and "A_log" not in name:
                parameter.normal_().mul_(parameter[0].numel() ** -0.5)
            elif "A_log" in name or "dt_bias" in name:
                parameter.uniform_(-3, 0)
            else:
                parameter.uniform_(0.5, 1.5)
    return layer.eval()


def rebuilt(translated: Translated) -> Mixer:
    """The mixer of a translation."""
    name, given, weights = translated
    mixer = zoo.mixers.build(name, width=weights["out.weight"].shape[0], **given)
    mixer.load_state_dict(weights)
    return mixer


def assert_same(layer: nn.Module, mixer: Mixer, length: int = 70, **given: Any) -> None:
    """Outputs in fp32 differ by at most 1e-5 of the largest, from the whole sequence and token by token."""
    x = torch.randn(2, length, mixer.width)
    with torch.no_grad():
        want, cache = layer(x, **given), mixer.new_cache(2)
        want = want[0] if isinstance(want, tuple) else want
        stepped = torch.cat([mixer(token, cache=cache) for token in x.split(1, 1)], 1)
        for y in (mixer(x), stepped):
            worst, largest = (y - want).abs().max().item(), want.abs().max().item()
            assert worst <= 1e-5 * largest, f"{worst:.3g} of {largest:.3g}"


def _gated_delta(layer: Any, parts: dict[str, Tensor], norm: Tensor, out: Tensor, **options: Any) -> Translated:
    """Gated DeltaNet of rows ``query, key, value, gate, decay, beta``, one number per value head of the last two."""
    given = {
        "heads": layer.num_k_heads,
        "value_heads": layer.num_v_heads,
        "head_dim": layer.head_k_dim,
        "value_dim": layer.head_v_dim,
        "conv": layer.conv_kernel_size,
    }
    names = {"gate": "gate.weight.weight", "decay": "decay.projection.weight", "beta": "beta.projection.weight"}
    weights = {names.get(part, f"{part}.weight"): rows for part, rows in parts.items()}
    weights |= {"decay.log_rate": layer.A_log, "decay.bias": layer.dt_bias, "conv.weight": layer.conv1d.weight[:, 0]}
    return "gated_deltanet", given | options, weights | {"norm.weight": norm, "out.weight": out}


def from_qwen3_next(layer: Any) -> Translated:
    """Rows lie by key head: its query, key, values and gates of its value heads; and their strengths and decays."""
    groups = layer.num_v_heads // layer.num_k_heads
    of_values = groups * layer.head_v_dim
    by_head = layer.in_proj_qkvz.weight.unflatten(0, (layer.num_k_heads, -1))
    sizes = [layer.head_k_dim, layer.head_k_dim, of_values, of_values]
    parts = dict(zip(("query", "key", "value", "gate"), by_head.split(sizes, 1), strict=True))
    strengths = layer.in_proj_ba.weight.unflatten(0, (layer.num_k_heads, -1)).split(groups, 1)
    parts |= dict(zip(("beta", "decay"), strengths, strict=True))
    parts = {name: rows.flatten(0, 1) for name, rows in parts.items()}
    return _gated_delta(layer, parts, layer.norm.weight, layer.out_proj.weight, norm_eps=layer.layer_norm_epsilon)


def from_qwen3_5(layer: Any) -> Translated:
    """Queries, keys and values lie one after another, and each of the rest by itself."""
    joined = layer.in_proj_qkv.weight.split([layer.key_dim, layer.key_dim, layer.value_dim])
    parts = dict(zip(("query", "key", "value"), joined, strict=True))
    for part, name in (("gate", "z"), ("beta", "b"), ("decay", "a")):
        parts[part] = getattr(layer, f"in_proj_{name}").weight
    return _gated_delta(layer, parts, layer.norm.weight, layer.out_proj.weight, norm_eps=layer.layer_norm_epsilon)


def from_olmo_hybrid(layer: Any) -> Translated:
    """Each matrix by itself; the strength may reach 2, and the norm adds 1e-5 whatever the model adds elsewhere."""
    names = {"query": "q", "key": "k", "value": "v", "gate": "g", "decay": "a", "beta": "b"}
    parts = {part: getattr(layer, f"{name}_proj").weight for part, name in names.items()}
    options = {"beta_max": 2.0 if layer.allow_neg_eigval else 1.0, "norm_eps": layer.o_norm.variance_epsilon}
    return _gated_delta(layer, parts, layer.o_norm.weight, layer.o_proj.weight, **options)


def from_kimi_linear(layer: Any, decay: str = "softplus") -> Translated:
    """Kimi Linear's layer; with ``decay="bounded"`` that of GLM-5.3."""
    gate = layer.forget_gate
    given = {"heads": layer.num_heads, "head_dim": layer.head_dim, "conv": layer.conv_kernel_size, "decay": decay}
    weights = {
        "query.weight": layer.q_proj.weight,
        "key.weight": layer.k_proj.weight,
        "value.weight": layer.v_proj.weight,
        "conv.weight": layer.conv1d.weight[:, 0],
        "decay.projection.down.weight": gate.f_a_proj.weight,
        "decay.projection.up.weight": gate.f_b_proj.weight,
        "decay.bias": gate.dt_bias,
        "decay.log_rate": gate.A_log.flatten(),
        "beta.projection.weight": layer.b_proj.weight,
        "gate.weight.down.weight": layer.g_a_proj.weight,
        "gate.weight.up.weight": layer.g_b_proj.weight,
        "norm.weight": layer.o_norm.weight,
        "out.weight": layer.o_proj.weight,
    }
    return "kda", given | {"norm_eps": layer.layer_norm_epsilon}, weights


def from_mamba2(layer: Any) -> Translated:
    """Mamba-2's layer: rows are those of the gate, of values, keys (B) and queries (C), and of the steps."""
    of_keys = layer.n_groups * layer.ssm_state_size
    sizes = [layer.intermediate_size, layer.intermediate_size, of_keys, of_keys, layer.num_heads]
    gate, value, key, query, step = layer.in_proj.weight.split(sizes)
    given = {
        "heads": layer.num_heads,
        "kv_heads": layer.n_groups,
        "head_dim": layer.ssm_state_size,
        "value_dim": layer.head_dim,
        "conv": layer.conv_kernel_size,
        "norm_eps": layer.norm.variance_epsilon,
    }

    def reordered(rows: Tensor) -> Tensor:
        """Rows of the convolution as queries, keys, values."""
        return torch.cat(rows.split(sizes[1:4])[::-1])

    weights = {
        "query.weight": query,
        "key.weight": key,
        "value.weight": value,
        "modulation.weight": gate,
        "conv.weight": reordered(layer.conv1d.weight[:, 0]),
        "conv.bias": reordered(layer.conv1d.bias),
        "decay.projection.weight": step,
        "decay.bias": layer.dt_bias,
        "decay.log_rate": layer.A_log,
        "skip": layer.D,
        "norm_weight": layer.norm.weight,
        "out.weight": layer.out_proj.weight,
    }
    return "mamba2", given, weights


def from_minimax(layer: Any) -> Translated:
    """MiniMax-01's lightning layer: rows lie by head, its query, key and value; SiLU is on all three."""
    by_head = layer.qkv_proj.weight.unflatten(0, (layer.num_attention_heads, 3, -1))
    query, key, value = (rows.flatten(0, 1) for rows in by_head.unbind(1))
    given = {"heads": layer.num_attention_heads, "head_dim": layer.head_dim}
    given |= {"layer": layer.layer_idx, "depth": layer.num_hidden_layers}
    weights = {
        "query.weight": query,
        "key.weight": key,
        "value.weight": value,
        "gate.weight.weight": layer.output_gate.weight,
        "norm.weight": layer.norm.weight,
        "out.weight": layer.out_proj.weight,
    }
    return "lightning", given | {"lrpe": "none", "norm": "rms", "gate": "sigmoid", "activate_values": True}, weights
