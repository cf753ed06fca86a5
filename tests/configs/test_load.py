"""Recipes: what overrides what, and that every mistake is named with its path and the nearest valid name."""

from __future__ import annotations

from pathlib import Path

import pytest

from configs.load import Layer, challenge, check, load_recipe, names, parse_override
from stages.contract import StageError
from stages.train.schedule import resolve

RECIPES, SCALES = names("recipe"), names("scale")


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_loads_at_every_scale(recipe: str, scale: str) -> None:
    loaded = load_recipe(recipe, scale)
    assert loaded.recipe.name == recipe
    assert loaded.recipe.about


def test_the_scales_of_the_design_are_there() -> None:
    assert {"smoke", "one-gpu", "full"} <= set(SCALES)


def test_a_scale_never_changes_depth() -> None:
    for recipe in RECIPES:
        layers = {load_recipe(recipe, scale).recipe.train.network.layers for scale in SCALES}
        assert len(layers) == 1, recipe


def test_smoke_needs_no_accelerator_and_no_network() -> None:
    for name in RECIPES:
        recipe = load_recipe(name, "smoke").recipe
        assert {recipe.devices.train.kind, recipe.devices.quantize.kind, recipe.devices.evaluate.kind} == {"cpu"}
        assert (recipe.corpus.source, recipe.corpus.val_source, recipe.vocabulary.model) == ("embedded", "", "")


def write(folder: Path, name: str, text: str) -> str:
    (folder / name).write_text(text, encoding="utf-8")
    return str(folder / name)


def test_layers_override_in_order(tmp_path: Path) -> None:
    write(tmp_path, "base.toml", "[train]\nsteps = 10\nlog_every = 10\nclip_norm = 10\nsequence_tokens = 32\n")
    mine = write(tmp_path, "mine.toml", 'extends = "base.toml"\n[train]\nlog_every = 20\nclip_norm = 20\n')
    scale = write(tmp_path, "tiny.toml", "[train]\nclip_norm = 30\nsteps = 30\n")
    loaded = load_recipe(mine, scale, ["train.steps=40"])
    train = loaded.recipe.train
    assert (train.sequence_tokens, train.log_every, train.clip_norm, train.steps) == (32, 20, 30.0, 40)
    paths = ("sequence_tokens", "log_every", "clip_norm", "steps", "validation_tokens")
    origins = [loaded.origin(f"train.{path}") for path in paths]
    assert origins == ["recipe base", "recipe mine", "scale tiny", "--set", "default"]
    assert loaded.scale == "tiny"


def test_a_scale_resizes_features_of_the_network_and_switches_none_on(tmp_path: Path) -> None:
    scale = write(tmp_path, "s.toml", "[train.network]\ndim = 256\nsmear = true\nbigram = { buckets = 64, dim = 8 }\n")
    plain = load_recipe(write(tmp_path, "plain.toml", ""), scale).recipe.train.network
    assert (plain.dim, plain.smear, plain.bigram.buckets) == (256, False, 0)
    network = load_recipe("base11", scale).recipe.train.network
    assert (network.dim, network.smear, network.bigram.buckets, network.bigram.dim) == (256, True, 64, 8)
    asked = load_recipe(str(tmp_path / "plain.toml"), scale, ["train.network.smear=true"]).recipe.train.network
    assert asked.smear


def test_a_scale_resizes_what_a_protocol_does_and_switches_nothing_on(tmp_path: Path) -> None:
    parts = """
        [evaluate.plain]
        [evaluate.cosine]
        protocol = "ttt"
        ttt = { horizon_chunks = 1893, lora = { rank = 8 } }
        [evaluate.before]
        protocol = "pre_eval"
        pre_eval = { first = { epochs = 20, lr = 0.5 } }
    """
    scale = """
        [evaluate."*"]
        max_targets = 99
        [evaluate."*".ttt]
        chunk_tokens = 4096
        horizon_chunks = 4
        lora = { rank = 2 }
        [evaluate."*".pre_eval]
        first = { epochs = 3 }
        second = { epochs = 3 }
        [evaluate.cosine]
        ttt = { horizon_chunks = 5 }
    """
    loaded = load_recipe(write(tmp_path, "m.toml", parts), write(tmp_path, "s.toml", scale))
    protocols = loaded.recipe.evaluate
    assert [each.max_targets for each in protocols.values()] == [99] * 3
    assert [each.ttt.chunk_tokens for each in protocols.values()] == [4096] * 3
    ttt = [(each.ttt.horizon_chunks, each.ttt.lora.rank) for each in protocols.values()]
    assert ttt == [(0, 0), (5, 2), (0, 0)]
    epochs = [(each.pre_eval.first.epochs, each.pre_eval.second.epochs) for each in protocols.values()]
    assert epochs == [(0, 0), (0, 0), (3, 0)]
    assert protocols["before"].pre_eval.first.lr == 0.5
    assert loaded.origin("evaluate.cosine.ttt.lora.rank") == "scale s"


def test_a_scale_resizes_a_budget_and_sets_none(tmp_path: Path) -> None:
    scale = write(tmp_path, "s.toml", "[quantize]\nsmall_weights = 7\n[quantize.fit]\nbudget_bytes = 50000\n")
    with_one, without = (load_recipe(name, scale, ["weigh.allow_oversize=true"]).recipe for name in ("pr1232", "pr398"))
    assert (with_one.quantize.fit.budget_bytes, without.quantize.fit.budget_bytes) == (50_000, 0)
    assert with_one.quantize.small_weights == without.quantize.small_weights == 7


def test_the_average_of_smoke_is_longer_than_a_step() -> None:
    for name in RECIPES:
        train = load_recipe(name, "smoke").recipe.train
        if train.ema.enabled:
            assert resolve(train.ema.time_constant, train.steps) >= 2, name


@pytest.mark.parametrize("text", ["[train.network]\ndimm = 3\n", "[train]\nnetwork = 3\n", "train = 3\n"])
def test_a_mistake_in_a_scale_is_named(tmp_path: Path, text: str) -> None:
    with pytest.raises(StageError, match=r"train.*\(from scale s"):
        load_recipe("base11", write(tmp_path, "s.toml", text))


def test_a_group_with_defaults_of_its_own_keeps_them(tmp_path: Path) -> None:
    mine = write(tmp_path, "m.toml", "[quantize.matrices]\nbits = 5\n[train.embed]\nweight_decay = 0.0\n")
    recipe = load_recipe(mine).recipe
    assert (recipe.quantize.matrices.bits, recipe.quantize.matrices.clip) == (5, "search")
    assert (recipe.train.embed.weight_decay, recipe.train.embed.lr) == (0.0, 0.035)


def test_lists_are_replaced(tmp_path: Path) -> None:
    mine = write(tmp_path, "m.toml", "[quantize]\nsearch_quantiles = [1.0]\n")
    assert load_recipe(mine).recipe.quantize.search_quantiles == (1.0,)


def test_a_recipe_keeps_its_own_name_and_claims(tmp_path: Path) -> None:
    write(tmp_path, "base.toml", 'about = "base"\n[published]\nbpb = 1.1\n')
    mine = write(tmp_path, "mine.toml", 'extends = "base.toml"\n')
    recipe = load_recipe(mine).recipe
    assert (recipe.name, recipe.about, recipe.published) == ("mine", "", {})


def test_extends_takes_a_built_in_name_or_a_path_beside_the_file(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    write(tmp_path, "base.toml", 'extends = "base11"\n[train]\nsteps = 3\n')
    mine = write(tmp_path / "below", "mine.toml", 'extends = "../base.toml"\n')
    recipe = load_recipe(mine).recipe
    assert (recipe.train.steps, recipe.train.network.layers) == (3, 11)


def test_a_recipe_leaves_out_what_it_names_of_those_below(tmp_path: Path) -> None:
    write(tmp_path, "a.toml", "[evaluate.x]\n[evaluate.y]\n[train]\nsteps = 3\n")
    write(tmp_path, "b.toml", 'extends = "a.toml"\n[evaluate.z]\n[evaluate.x]\nbatch_windows = 4\n')
    mine = write(tmp_path, "c.toml", 'extends = "b.toml"\nwithout = ["evaluate.y", "evaluate.x.batch_windows"]\n')
    recipe = load_recipe(mine).recipe
    assert list(recipe.evaluate) == ["x", "z"]
    assert recipe.evaluate["x"].batch_windows == 32


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (
            'extends = "base11"\nwithout = ["evaluate.publishd"]',
            r"leaves out 'evaluate\.publishd', which none of base11",
        ),
        ('without = ["evaluate.x"]', r"leaves out 'evaluate\.x', which none of them has"),
        ('extends = "base11"\nwithout = "evaluate.raw"', r"without is a list of paths; .* has 'evaluate\.raw'"),
    ],
)
def test_leaving_out_what_is_not_there_is_refused(tmp_path: Path, line: str, expected: str) -> None:
    with pytest.raises(StageError, match=expected):
        load_recipe(write(tmp_path, "m.toml", line + "\n"))


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["evaluate.ttt.ttt.freeze=['blocks.11.*']"], r"evaluate\.ttt\.ttt\.freeze names .* nearest: blocks\."),
        (["evaluate.ttt.ttt.adapt=['*.attn.w']"], r"evaluate\.ttt\.ttt\.adapt names parameters that exist"),
        (["evaluate.ttt.ttt.lora.rank=1", "evaluate.ttt.ttt.lora.targets=['q']"], r"evaluate\.ttt\.ttt\.lora\.targets"),
    ],
)
def test_a_glob_that_matches_no_parameter_is_refused_before_training(overrides: list[str], expected: str) -> None:
    ttt = ["evaluate.ttt.protocol=ttt"]
    with pytest.raises(StageError, match=expected):
        load_recipe("base11", "full", [*ttt, *overrides])


def test_a_circle_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "b.toml", 'extends = "a.toml"\n')
    mine = write(tmp_path, "a.toml", 'extends = "b.toml"\n')
    with pytest.raises(StageError, match="a -> b -> a"):
        load_recipe(mine)


def test_a_wildcard_speaks_to_every_protocol_and_a_name_has_the_last_word(tmp_path: Path) -> None:
    mine = write(tmp_path, "m.toml", '[evaluate.a]\nstride_tokens = 7\n[evaluate.b]\nof = "raw"\n')
    scale = write(tmp_path, "s.toml", '[evaluate."*"]\nbatch_windows = 3\n[evaluate.b]\nbatch_windows = 4\n')
    loaded = load_recipe(mine, scale, ["evaluate.*.max_targets=9"])
    protocols = loaded.recipe.evaluate
    assert set(protocols) == {"a", "b"}
    assert (protocols["a"].batch_windows, protocols["b"].batch_windows) == (3, 4)
    assert [p.max_targets for p in protocols.values()] == [9, 9]
    assert (protocols["a"].stride_tokens, protocols["b"].of) == (7, "raw")
    assert loaded.origin("evaluate.a.max_targets") == "--set"


@pytest.mark.parametrize(
    ("text", "table"),
    [
        ("train.muon.lr=0.02", {"train": {"muon": {"lr": 0.02}}}),
        ("train.muon.lr=1e-4", {"train": {"muon": {"lr": 1e-4}}}),
        ("train.ema.enabled=false", {"train": {"ema": {"enabled": False}}}),
        ("average.kind=raw", {"average": {"kind": "raw"}}),
        ("average.kind='raw'", {"average": {"kind": "raw"}}),
        ("corpus.source=s3://b/x=y.jsonl", {"corpus": {"source": "s3://b/x=y.jsonl"}}),
        ("corpus.source=", {"corpus": {"source": ""}}),
        ("a.b=[1, 2]", {"a": {"b": [1, 2]}}),
        ("a = 3 # three", {"a": 3}),
        ("evaluate.*.of=raw", {"evaluate": {"*": {"of": "raw"}}}),
    ],
)
def test_an_override_is_toml_or_bare_text(text: str, table: object) -> None:
    assert parse_override(text) == table


@pytest.mark.parametrize("text", ["", "train.steps", "=3", "a..b=3", "a b=3", "a=1\nb=2"])
def test_an_override_without_path_and_value_is_refused(text: str) -> None:
    with pytest.raises(StageError, match="--set takes path=value"):
        parse_override(text)


def complaint(*overrides: str) -> str:
    with pytest.raises(StageError) as caught:
        load_recipe("base11", "full", overrides)
    return str(caught.value)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("trian.steps=3", "trian is no field (from --set); did you mean 'train'?"),
        ("train.muon.lrr=3", "train.muon.lrr is no field (from --set); did you mean 'lr'?"),
        ("train.network.layer=3", "train.network.layer is no field (from --set); did you mean 'layers'?"),
        ("train.network.rope.dim=3", "train.network.rope.dim is no field (from --set); did you mean 'dims'?"),
        ("evaluate.sliding.ttt.epoch=3", "evaluate.sliding.ttt.epoch is no field (from --set); did you mean 'epochs'?"),
        ("train.momentum=3", "train.momentum is no field (from --set); did you mean train.muon.momentum"),
        ("train.steps='3'", 'train.steps is a whole number; got "3", text (from --set); its default is 9000'),
        ("train.steps=1e3", "train.steps is a whole number; got 1000.0, a number (from --set)"),
        ("train.steps=true", "train.steps is a whole number; got true, true or false (from --set)"),
        ("train.steps=0", "train.steps is at least 1; got 0, a whole number (from --set)"),
        ("train.network.layers='3'", 'train.network.layers is a whole number; got "3", text (from --set)'),
        ("train.compile=onn", "train.compile is 'auto', 'on' or 'off'; got \"onn\", text (from --set); did you mean"),
        ("train.ema=true", "train.ema is a table; got true, true or false (from --set)"),
        ("train.network.heads=3", "train.network: heads must divide dim; got dim 512, heads 3 (from "),
        ("quantize.search_quantiles=[]", "quantize.search_quantiles is a list of at least 1; got [], a list"),
        ("devices.train.kind=tpu", "devices.train.kind is text that matches ^(cpu|cuda)$; got \"tpu\", text"),
        ("train.clip_norm=nan", "recipes hold text, finite numbers, true and false, lists and tables;"),
        ("corpus.source=2020-01-01", "recipes hold text, finite numbers, true and false, lists and tables;"),
        ('evaluate."a/b".of=raw', "a name is letters, digits, - and _; got 'evaluate.a/b'"),
        ("bundle.recipe.x=1", "bundle.recipe is filled in by the wiring"),
    ],
)  # fmt: skip
def test_a_mistake_is_named_with_path_author_and_remedy(override: str, expected: str) -> None:
    assert complaint(override).startswith(expected)


def test_all_mistakes_are_told_at_once() -> None:
    text = complaint("train.steps='3'", "train.muon.lrr=1", "average.kind=emma")
    assert text.startswith("3 fields of the recipe are wrong:")
    assert all(part in text for part in ("train.steps is", "train.muon.lrr is", "did you mean 'ema'?"))


@pytest.mark.parametrize(
    ("recipe", "scale", "expected"),
    [
        ("base12", "full", "got 'base12'; did you mean 'base11'?; there are "),
        ("base11", "smoek", "got 'smoek'; did you mean 'smoke'?; there are full, one-gpu, smoke"),
        ("../recipes/base11", "full", "a recipe is a built-in name or the path of a .toml file"),
        ("absent.toml", "full", "absent.toml is not there"),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest(recipe: str, scale: str, expected: str) -> None:
    with pytest.raises(StageError) as caught:
        load_recipe(recipe, scale)
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"[train\n", "is not: Expected"),
        (b"steps = '\xff'", "UTF-8"),
        (b"extends = 3\n", "extends is a recipe's name or path"),
        (b"name = 'a b'\n", "name is at most 64 letters, digits, - and _, without spaces; got"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused(tmp_path: Path, content: bytes, expected: str) -> None:
    (tmp_path / "bad.toml").write_bytes(content)
    with pytest.raises(StageError, match=expected):
        load_recipe(str(tmp_path / "bad.toml"))


def test_a_base_layer_alone_is_checked_too() -> None:
    assert check([Layer("here", {"name": "x"})]).recipe.train.steps == 9000


def test_the_cap_is_that_of_the_challenge() -> None:
    assert check([Layer("here", {"name": "x"})]).recipe.weigh.cap_bytes == challenge()["cap_bytes"] == 16_000_000
    assert challenge()["validation"]["sp1024"]["targets"] == 30_284 * 2048
