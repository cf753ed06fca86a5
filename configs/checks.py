"""What a recipe asks for that its own other fields rule out, found before anything runs.

Each check takes a whole recipe and raises ValueError: the rule with its field, what came, what is allowed. What
concerns one stage alone is checked by that stage's own configuration.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from model.names import all_virtual_names, matching, parameter_count, parameter_shapes, virtual_names
from model.protocol import FakeQuantise, descents, selectors
from stages.quantize.rules import fitted_names, rules_for
from stages.train.schedule import Schedule

if TYPE_CHECKING:
    from configs.recipe import Recipe
    from stages.train.config import Config as TrainConfig
    from stages.train.config import QatGrid

_QAT_MEMBERS = {
    "attention": ("attn.q", "attn.k", "attn.v", "attn.o"),
    "mlp": ("mlp.up", "mlp.down"),
    "auxiliary": ("bigram.proj", "ve.proj"),
}
LEAST_CODE_BITS = 1.0  # published matrices of this size take 3.7 to 5.3 bits per weight
LEAST_FLOAT_SHARE = 0.5  # trained floats keep their mantissas' noise


def selectors_match(recipe: Recipe) -> None:
    """Globs name parameters that the network has: known before training, needed after it."""
    known = all_virtual_names(recipe.train.network)
    for part, protocol in recipe.evaluate.items():
        for field, patterns in selectors(protocol):
            matching(patterns, known, f"evaluate.{part}.{field}")


def averages_exist(recipe: Recipe) -> None:
    """`average` reads what training keeps, at intervals that fit into the run."""
    train, kind = recipe.train, recipe.average.kind
    if kind == "ema" and not train.ema.enabled:
        raise ValueError(
            "average.kind 'ema' reads the moving average; train.ema.enabled is false; set it to true, or choose raw, "
            "swa or tight_swa"
        )
    if train.ema.enabled and train.ema.time_constant.steps > train.ema.time_constant.of:
        horizon = train.ema.time_constant
        raise ValueError(
            f"train.ema.time_constant is at most the run's length, {horizon.of:g} steps; got {horizon.steps:g}; such "
            "an average would be mostly initial weights; make it shorter"
        )
    if train.snapshots.every.steps > train.snapshots.every.of:
        horizon = train.snapshots.every
        raise ValueError(
            f"train.snapshots.every is at most the run's length, {horizon.of:g} steps; got {horizon.steps:g}; "
            "take copies more often"
        )
    if kind in ("swa", "tight_swa"):
        _snapshots_suffice(recipe)


def _snapshots_suffice(recipe: Recipe) -> None:
    train, average = recipe.train, recipe.average
    if not train.snapshots.every.steps:
        raise ValueError(
            f"average.kind {average.kind!r} is a mean of snapshots; train.snapshots.every.steps is 0, which takes "
            "none; set it, or choose raw or ema"
        )
    taken = snapshots_taken(train)
    if taken is None:
        return
    wanted = average.last if average.kind == "tight_swa" else 1
    if taken < wanted:
        raise ValueError(
            f"average.kind {average.kind!r} needs {wanted} snapshots"
            f"{' (average.last)' if average.kind == 'tight_swa' else ''}; a run of this length takes {taken} of them, "
            f"where the learning rate is below {train.snapshots.below_scale:g} of its peak; take them more often "
            "(train.snapshots.every), sooner (train.snapshots.below_scale), or ask for fewer"
        )


def snapshots_taken(train: TrainConfig) -> int | None:
    """Snapshots of a run of the expected length at an even pace; None where only a measured speed would tell."""
    steps = train.steps if train.schedule.clock == "steps" else train.expected_steps
    if not steps:
        return None
    schedule = Schedule(train, train.expected_steps or steps)
    step_s = train.budget_s / steps
    scales = (schedule.scale(step, step * step_s) for step in range(steps))
    return sum(schedule.snapshot_is_due(step, scale) for step, scale in enumerate(scales, 1))


def overrides_match(recipe: Recipe) -> None:
    """Each override of the quantiser speaks for matrices that exist, and no two for the same."""
    rules_for(parameter_shapes(recipe.train.network), recipe.quantize)


def qat_trains_for_the_quantiser(recipe: Recipe) -> None:
    """Quantisation-aware training rounds to the grid that `quantize` will use."""
    qat = recipe.train.qat
    if not qat.live or qat.allow_bits_mismatch:
        return
    for name, shape in parameter_shapes(recipe.train.network).items():
        group = next((group for group, members in _QAT_MEMBERS.items() if name in members), "")
        grid: QatGrid | None = getattr(qat, group) if group else None
        if grid is not None and grid.bits:
            _is_stored_on(recipe, virtual_names(name, shape), grid, f"train.qat.{group}", "train.qat")


def adaptation_trains_on_the_archives_grid(recipe: Recipe) -> None:
    """Rounding inside of test-time training is to the grid of what is adapted, unless it says that it is not."""
    known = all_virtual_names(recipe.train.network)
    for part, protocol in recipe.evaluate.items():
        for name, descent in descents(protocol) if protocol.of == "archive" else []:
            grid = descent.fake_quantise
            if grid.bits and not grid.allow_bits_mismatch:
                field = f"evaluate.{part}.{name}.fake_quantise"
                _is_stored_on(recipe, sorted(matching(grid.targets, known, f"{field}.targets")), grid, field, field)


def _is_stored_on(recipe: Recipe, names: Sequence[str], grid: QatGrid | FakeQuantise, field: str, trains: str) -> None:
    """Each of the (virtual) names is stored with the bits and the scale floor of `grid`, which `field` holds."""
    shapes, config = parameter_shapes(recipe.train.network), recipe.quantize
    rules = rules_for(shapes, config)
    fitted = set(fitted_names(shapes, config)) if config.fit.budget_bytes else set[str]()
    for name in names:
        if (rule := rules.get(name)) is None:
            stored = f"floats of {config.vector_bits} bits"
        else:
            bits = config.fit.bits if name in fitted else (rule.bits,)
            if grid.bits in bits and math.isclose(grid.scale_floor, rule.with_bits(grid.bits).scale_floor):
                continue
            stored = f"bits {' or '.join(map(str, bits))} and scale_floor {rule.scale_floor:g}"
        raise ValueError(
            f"{trains} trains for the grid that quantize will use; {field} has bits {grid.bits} and scale_floor "
            f"{grid.scale_floor:g}, and {name} is stored with {stored}; make them equal, or set "
            f"{trains}.allow_bits_mismatch = true"
        )


def codec_holds_codes(recipe: Recipe) -> None:
    """The context coder holds integer codes."""
    rules = rules_for(parameter_shapes(recipe.train.network), recipe.quantize).values()
    if recipe.compress.codec == "rans" and all(rule.bits >= 16 for rule in rules):
        raise ValueError(
            "compress.codec 'rans' holds integer codes of 4 to 8 bits; every matrix is stored as floats "
            f"(quantize.matrices.bits is {recipe.quantize.matrices.bits}); choose zstd, lzma or auto, or fewer bits"
        )


def archive_can_fit(recipe: Recipe) -> None:
    """A network that is over the cap even at one bit per code is not trained first."""
    if recipe.weigh.allow_oversize:
        return
    least = least_archive_bytes(recipe)
    if least > recipe.weigh.cap_bytes:
        raise ValueError(
            f"code and model take at most weigh.cap_bytes {recipe.weigh.cap_bytes:,}; the archive of this network of "
            f"{parameter_count(recipe.train.network):,} parameters takes {least:,} at the very least, with "
            f"{LEAST_CODE_BITS:g} bit per coded weight and half of every float; make train.network smaller, store more "
            "of it as codes (quantize), or set weigh.allow_oversize = true"
        )


def least_archive_bytes(recipe: Recipe) -> int:
    """A floor of the archive's size, whatever is trained: one bit per coded weight, half of each float, no code.

    It is an assumption and no theorem, since a network of zeros compresses to nothing; every trained one is far above.
    """
    shapes = parameter_shapes(recipe.train.network)
    rules = rules_for(shapes, recipe.quantize)
    bits = 0.0
    for name, shape in shapes.items():
        for virtual in (names := virtual_names(name, shape)):
            size = math.prod(shape) / len(names)
            width = rules[virtual].bits if virtual in rules else recipe.quantize.vector_bits
            bits += size * (LEAST_CODE_BITS if width < 16 else LEAST_FLOAT_SHARE * width)
    return int(bits / 8)


CHECKS = (
    selectors_match,
    averages_exist,
    overrides_match,
    qat_trains_for_the_quantiser,
    adaptation_trains_on_the_archives_grid,
    codec_holds_codes,
    archive_can_fit,
)
