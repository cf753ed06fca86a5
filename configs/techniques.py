"""The techniques that a recipe has on, as names: read from its fields, so that no list can disagree with them."""

from __future__ import annotations

from collections.abc import Iterator

from configs.recipe import Recipe
from model.names import parameter_shapes
from model.protocol import Adaptation, Descent, Protocol, phases_of
from stages.quantize.rules import rules_for


def techniques(recipe: Recipe) -> list[str]:
    """Names of what is on, in river order, each once."""
    found = [*_network(recipe), *_training(recipe), *_storage(recipe)]
    for protocol in recipe.evaluate.values():
        found += _evaluation(protocol)
    return list(dict.fromkeys(found))


def _network(recipe: Recipe) -> Iterator[str]:
    network = recipe.train.network
    head = network.dim // network.heads
    switches = {
        network.activation: network.activation != "relu2",
        "bigram_hash": network.bigram.buckets,
        "smear_gate": network.smear,
        "unet_skips": network.unet_skips,
        "residual_mix": network.residual_mix,
        "ln_scale": network.ln_scale,
        "partial_rope": 0 < network.rope.dims < head,
        "ntk_rope": network.rope.reference_tokens,
        "xsa": network.xsa_layers,
        "value_embedding": network.value_embedding.layers,
        f"value_residual_{network.value_residual}": network.value_residual,
        "gated_attention": network.gated_attention,
        "depth_recurrence": network.recurrence.layers,
        "memory_tokens": network.memory_tokens,
        "refiner": network.refiner.latent,
        "logit_softcap": network.softcap,
        "tied_head": network.tied_head,
    }
    return (name for name, on in switches.items() if on)


def _training(recipe: Recipe) -> Iterator[str]:
    train, average = recipe.train, recipe.average
    switches = {
        "muon": True,
        "sharded_muon": train.muon.parallel == "sharded",
        "cosine_decay": train.schedule.decay == "cosine",
        "clip_before_reduction": train.clip_norm and train.clip == "before",
        "z_loss": train.z_loss,
        "complementary_loss": train.complement.alpha,
        f"qat_{train.qat.mode}": train.qat.mode != "off",
        average.kind: average.kind != "raw",
    }
    return (name for name, on in switches.items() if on)


def _storage(recipe: Recipe) -> Iterator[str]:
    quantize, compress = recipe.quantize, recipe.compress
    coded = [rule for rule in rules_for(parameter_shapes(recipe.train.network), quantize).values() if rule.bits < 16]
    yield from sorted({f"int{rule.bits}" for rule in coded})
    switches = {
        "scale_floor": any(rule.scale_floor for rule in coded),
        "clip_search": any(rule.clip == "search" for rule in coded),
        "pruning": any(rule.prune for rule in coded),
        f"bits_by_{quantize.fit.order}": quantize.fit.budget_bytes,
        f"{compress.codec}_{compress.level}": compress.codec in ("zstd", "xz", "zlib"),
        f"{compress.codec}_coder": compress.codec in ("rans", "lzma"),
        "smallest_coder": compress.codec == "auto",
    }
    yield from (name for name, on in switches.items() if on)


def _evaluation(protocol: Protocol) -> Iterator[str]:
    switches = {
        f"stride_{protocol.stride_tokens}": protocol.protocol != "roundtrip",
        "score_first_ttt": protocol.protocol == "ttt",
        "pre_eval_adaptation": protocol.protocol == "pre_eval",
        "temperature": protocol.temperature != 1.0,
        "tail_rescore": protocol.tail_rescore,
        f"{protocol.mixer.kind}_mixer": protocol.mixer.kind != "off",
    }
    yield from (name for name, on in switches.items() if on)
    if protocol.protocol == "ttt":
        yield from _adaptation(protocol.ttt)
    for phase in phases_of(protocol).values():
        yield from _descent(phase)


def _adaptation(ttt: Adaptation) -> Iterator[str]:
    yield from _descent(ttt)
    if ttt.lora.rank:
        yield f"lora_{ttt.lora.rank}"
    if ttt.polyak_decay:
        yield "polyak"
    if ttt.byte_weighted:
        yield "byte_weighted_loss"


def _descent(descent: Descent) -> Iterator[str]:
    yield f"{descent.optimizer}_adaptation"
    if descent.adapt or descent.freeze:
        yield "partial_adaptation"
    if descent.fake_quantise.bits:
        yield "fake_quantised_adaptation"
