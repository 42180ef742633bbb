"""Settings: what is read, what is refused and in which words, what is derived."""

import ast
import math
import runpy
from pathlib import Path

import pytest

from sfrik_jax import config as configs
from sfrik_jax import losses, models, optim, resuming
from sfrik_jax.config import Schedule
from sfrik_jax.config_keys import known
from sfrik_jax.data import views
from sfrik_jax.errors import ConfigError, CorruptInputError
from sfrik_jax.settings import RECIPE_DEFAULTS

ROOT = Path(__file__).parents[1]
# Those of evaluations are held against their protocol in test_eval_configs.py.
FILES = [
    path
    for path in sorted((ROOT / "configs").glob("*.py"))
    if configs.load(path).job == "pretrain"
]


def refusal(*overrides, method="sfrik", **facts):
    with pytest.raises(ConfigError) as caught:
        config = configs.apply_overrides(
            configs.default(), [f"loss.method={method}", *overrides]
        )
        configs.validate(config, **facts)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_the_defaults_are_valid_and_locked():
    config = configs.default()
    configs.validate(config, num_examples=256_000, num_devices=8)
    with pytest.raises(AttributeError, match="batch_size"):
        config.data.batchsize = 4


@pytest.mark.parametrize("method", configs.LOSS_DEFAULTS)
def test_each_method_has_a_valid_section_of_its_own(method):
    config = configs.default()
    config.loss = configs.loss_section(method)
    configs.validate(config)
    fields = set(config.loss.keys()) - {"method"}
    assert fields == set(configs.LOSS_DEFAULTS[method])


@pytest.mark.parametrize(
    ("key", "table"),
    [
        ("model.backbone", models.BACKBONES),
        ("loss.method", losses.METHODS),
        ("augment.recipe", views.RECIPES),
    ],
)
def test_the_choices_are_those_of_the_code(key, table):
    assert set(configs.CHOICES[key]) == set(table)


@pytest.mark.parametrize("name", configs.CHOICES["optim.name"])
def test_each_optimiser_can_be_built(name):
    optim.build(0.1, name=name, weight_decay=0.0, momentum=0.9, trust_coefficient=1e-3)


# --- Overrides ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("data.batch_size=64", 64),
        ("optim.base_lr=2", 2.0),
        ("optim.base_lr=1e-3", 1e-3),
        ("eval.baselines=true", True),
        ("eval.baselines=False", False),
        ("loss.weights=1,40", (1.0, 40.0)),
        ("loss.weights=[1, 40, 40, 3.5]", (1.0, 40.0, 40.0, 3.5)),
        ("loss.weights=rbf(2.5)", "rbf(2.5)"),
        ("loss.weights='heat(0.01, order=4)'", "heat(0.01, order=4)"),
        ("model.hidden_dims=()", ()),
        ("model.hidden_dims=512,", (512,)),
        ("data.path=/my pictures/=x", "/my pictures/=x"),
        ("data.path='quoted'", "quoted"),
        ("data.name=123", "123"),
        ("init_from=", ""),
        ("data.train_split=train[:500]", "train[:500]"),
    ],
)
def test_an_override_takes_the_type_of_its_setting(override, value):
    key = override.partition("=")[0]
    got = configs.flatten(configs.apply_overrides(configs.default(), [override]))[key]
    assert got == value
    assert type(got) is type(value)


def test_the_last_of_two_overrides_counts_and_the_original_stays():
    config = configs.default()
    changed = configs.apply_overrides(config, ["seed=1", "seed=2"])
    assert (config.seed, changed.seed) == (0, 2)


def test_another_method_brings_its_own_settings_whatever_the_order():
    config = configs.apply_overrides(
        configs.default(), ["loss.temperature=0.2", "loss.method=simclr"]
    )
    assert config.loss.to_dict() == {"method": "simclr", "temperature": 0.2}


def test_naming_the_method_that_is_there_keeps_its_settings():
    config = configs.apply_overrides(configs.default(), ["loss.weights=1,2"])
    again = configs.apply_overrides(config, ["loss.method=sfrik"])
    assert configs.diff(config, again) == []


def test_another_recipe_brings_its_own_settings_whatever_the_order():
    config = configs.apply_overrides(
        configs.default(), ["augment.hue=0.3", "augment.recipe=swav"]
    )
    want = {"recipe": "swav", **RECIPE_DEFAULTS["swav"], "hue": 0.3}
    assert config.augment.to_dict() == want
    configs.validate(config)
    again = configs.apply_overrides(config, ["augment.recipe=swav"])
    assert configs.diff(config, again) == []
    assert configs.diff(config, configs.from_json(configs.to_json(config))) == []


def test_both_variants_change_at_once():
    config = configs.apply_overrides(
        configs.default(), ["loss.method=auh", "augment.recipe=auh"]
    )
    assert config.loss == configs.loss_section("auh")
    assert config.augment == configs.augment_section("auh")


def test_a_file_that_sets_the_recipes_name_alone_is_refused(tmp_path):
    path = tmp_path / "named.py"
    path.write_text(
        "from sfrik_jax.config import default\n"
        "def get_config():\n"
        "    config = default()\n"
        "    config.augment.recipe = 'simclr'\n"
        "    return config\n"
    )
    with pytest.raises(ConfigError, match=r"augment_section\('simclr'\)"):
        configs.load(path)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("data.batchsize=4", "did you mean data.batch_size? (data has source, name"),
        ("dta.batch_size=4", "did you mean data.batch_size? (there are job"),
        ("batch_size=4", "did you mean data.batch_size?"),
        ("xyz=4", "xyz is not a setting (there are job, seed, init_from, data"),
        ("data=4", "data is a section; set one of data.source"),
        ("seed.x=4", "seed.x is not a setting"),
        ("loss.temperature=1", "belongs to the method simclr; loss.method='sfrik' has"),
        ("new\nline=1", r"new\nline is not a setting"),
        ("seed", "written as key=value"),
        ("seed=x", "seed='x' needs a whole number, such as 0"),
        ("seed=True", "seed=True needs a whole number"),
        ("data.batch_size=64.0", "data.batch_size=64.0 needs a whole number"),
        ("optim.base_lr=fast", "optim.base_lr='fast' needs a number, such as 1.2"),
        ("optim.base_lr=(1.2,)", "optim.base_lr=(1.2,) needs a number"),
        ("eval.baselines=1", "eval.baselines=1 needs True or False"),
        ("loss.weights=1", "loss.weights=1 needs numbers separated by commas"),
        ("loss.weights=1,a", "loss.weights='1,a' needs numbers"),
        ("loss.weights='1'", "such as (1.0, 40.0, 40.0), or a name such as rbf(2.5)"),
        ("model.hidden_dims=rbf(2.5)", "model.hidden_dims='rbf(2.5)' needs numbers"),
        ("model.hidden_dims=8,8.5", "model.hidden_dims=(8, 8.5) needs numbers"),
        ("model.hidden_dims=" + "(" * 5000, "..."),
        ("optim.base_lr=" + "9" * 400, "optim.base_lr=inf: it must be a finite"),
    ],
)
def test_an_unknown_key_or_a_wrong_type_is_refused(override, words):
    assert words in refusal(override)


# --- Values ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("seed=-1", "at least 0"),
        ("seed=2147483648", "at most 2147483647"),
        ("data.source=web", "choose one of tfds, folder"),
        (
            "augment.recipe=vicregg",
            "choose one of vicreg, simclr, auh, small, obow, swav; did you mean",
        ),
        ("augment.crop_scale=0,1", "each entry must be above 0 and at most 1"),
        ("augment.crop_scale=0.5,0.2", "give the smaller share first"),
        ("augment.blur_prob=0.5,", "give two numbers"),
        ("augment.flip_prob=1.5", "between 0 and 1"),
        ("augment.hue=0.6", "between 0 and 0.5"),
        ("augment.brightness=-1", "at least 0"),
        ("augment.normalization=cifar", "choose one of imagenet, stl10"),
        ("data.residence=gpu", "choose one of auto, device, host"),
        ("data.resample=nearest", "choose one of exact, fast"),
        ("model.backbone=resnet19", "choose one of resnet14, resnet18"),
        ("model.stem=tiny", "choose one of imagenet, small"),
        ("model.dtype=float16", "choose one of bfloat16, float32, float64"),
        ("optim.name=adam", "choose one of lars, adamw, sgd; did you mean adamw?"),
        ("data.image_size=7", "at least 8"),
        ("data.batch_size=1", "at least 2"),
        ("data.workers=-1", "at least 0"),
        ("model.width=0", "at least 1"),
        ("model.hidden_dims=8,0", "each entry must be at least 1"),
        ("model.embed_dim=1", "at least 2"),
        ("loss.weights=1,-40", "each entry must be at least 0"),
        ("loss.weights=(1, nan)", "needs numbers separated by commas"),
        ("loss.weights=1,1e999", "each entry must be a finite number"),
        ("loss.weights=0,0", "set at least one b_l above 0"),
        ("loss.weights=()", "give b_1 … b_L, such as 1,40,40"),
        ("loss.weights=gauss", "loss.weights='gauss': write NAME(NUMBER), such as rbf"),
        ("loss.weights=bandlimitd(3)", "did you mean bandlimited?"),
        ("loss.weights=rbf(0)", "loss.weights='rbf(0)': s=0 must be above 0"),
        ("loss.weights=heat(1, order=99)", "order=99 must be from 1 to 64"),
        ("loss.alignment_coeff=-1", "at least 0"),
        ("loss.mmd_coeff=-1", "at least 0"),
        ("optim.base_lr=nan", "a finite number"),
        ("optim.base_lr=-inf", "a finite number"),
        ("optim.base_lr=-0.1", "above 0"),
        ("optim.weight_decay=-1", "at least 0"),
        ("optim.momentum=1", "at least 0 and below 1"),
        ("optim.trust_coefficient=0", "above 0"),
        ("optim.epochs=0", "at least 1"),
        ("optim.warmup_epochs=-1", "at least 0"),
        ("optim.warmup_epochs=101", "is more than optim.epochs=100; set it to 100"),
        ("mesh.data=0", "set -1 (all devices) or at least 1"),
        ("mesh.model=2", "mesh.model=2 with mesh.projector='replicated'"),
        ("mesh.projector=model", "with mesh.model=1"),
        ("step.remat=half", "choose one of none, convolutions, blocks"),
        ("step.micro_batches=0", "at least 1"),
        ("mesh.model=0", "at least 1"),
        ("checkpoint.every_steps=0", "at least 1"),
        ("checkpoint.keep=1", "at least 2"),
        ("checkpoint.milestone_epochs=-1", "at least 0"),
        ("eval.every_epochs=-1", "at least 0"),
        ("eval.knn_k=0", "at least 1"),
        ("eval.knn_temperature=0", "above 0"),
        ("eval.probe_epochs=0", "at least 1"),
        ("eval.probe_batch_size=0", "at least 1"),
        ("eval.probe_learning_rates=0.1,0", "each entry must be above 0"),
        ("eval.probe_learning_rates=()", "give one or more"),
        ("eval.probe_weight_decay=-1", "at least 0"),
        ("log.every_steps=0", "at least 1"),
        ("data.name=../x", "give the name of a TFDS data set"),
        ("data.name=", "give the name of a TFDS data set"),
        ("data.train_split=", "name the split to train on"),
        ("eval.resize=100", "is less than eval.image_size=224; set"),
        ("model.stem=small", "with data.image_size=224; it is for pictures up to 64"),
        ("profile.last_step=5", "1 <= first_step <= last_step"),
        ("profile.first_step=-1", "at least 0"),
    ],
)
def test_an_impossible_value_is_refused_with_setting_and_remedy(override, words):
    message = refusal(override)
    assert override.partition("=")[0] in message
    assert words in message


@pytest.mark.parametrize(
    ("method", "override", "words"),
    [
        ("simclr", "loss.temperature=0", "above 0"),
        ("auh", "loss.scale=0", "above 0"),
        ("auh", "loss.uniformity_coeff=-1", "at least 0"),
        ("vicreg", "loss.invariance_coeff=-1", "at least 0"),
        ("vicreg", "loss.variance_coeff=-1", "at least 0"),
        ("vicreg", "loss.covariance_coeff=-1", "at least 0"),
    ],
)
def test_each_method_checks_its_own_settings(method, override, words):
    assert words in refusal(override, method=method)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["augment.patch_count=10"], "between 0 and 9"),
        (["augment.patch_size=240"], "use at most 232"),
        (["augment.resize=200"], "is less than data.image_size=224"),
        (["augment.crop_count=0", "augment.patch_count=0"], "make at least two"),
        (["loss.method=simclr"], "use loss.method=sfrik"),
        (["augment.small_count=3"], "belongs to the recipe swav"),
    ],
)
def test_multi_crop_checks_its_views(overrides, words):
    assert words in refusal("augment.recipe=obow", *overrides)


def test_checks_that_need_two_settings():
    assert "give the folder" in refusal("data.source=folder")
    assert "all 0" in refusal("loss.alignment_coeff=0", "loss.mmd_coeff=0")
    assert "1 <= first" in refusal("profile.first_step=9", "profile.last_step=5")
    assert "choose one of sfrik" in refusal(method="simcrl")


def test_an_alignment_without_a_kernel_term_may_be_trained():
    config = configs.apply_overrides(configs.default(), ["loss.mmd_coeff=0"])
    configs.validate(config)


def test_a_fixed_order_of_sums_excludes_other_passes():
    message = refusal("step.deterministic_reduce=4", "step.micro_batches=2")
    assert (
        "step.micro_batches=2 does not go with step.deterministic_reduce=4" in message
    )
    assert "mesh.projector" in refusal(
        "step.deterministic_reduce=4", "mesh.projector=data"
    )


def test_a_batch_is_at_most_the_data_set():
    message = refusal("data.batch_size=501", num_examples=500)
    assert "more than the 500 images of data.train_split='train'" in message
    assert "use at most 500" in message
    assert "has 0 images" in refusal(num_examples=0)


@pytest.mark.parametrize(
    ("overrides", "devices", "words"),
    [
        (
            ["data.batch_size=100"],
            8,
            "leaves 4 images over on 8 devices; use 96 or 104, or set mesh.data to "
            "1, 2, 4 or 5",
        ),
        (["data.batch_size=3"], 8, "use 8, or set mesh.data to 1 or 3"),
        (
            ["data.batch_size=9", "mesh.model=4", "mesh.projector=model"],
            8,
            "over on 2 devices; use 8 or 10",
        ),
        (["data.batch_size=9", "mesh.data=2"], 8, "over on 2 devices"),
        (
            ["mesh.model=3", "mesh.projector=model"],
            8,
            "does not divide the 8 devices; use 1, 2, 4 or 8",
        ),
        (
            ["mesh.data=4", "mesh.model=4", "mesh.projector=model"],
            8,
            "is more than the 8 devices",
        ),
        (
            ["data.batch_size=48", "step.micro_batches=4"],
            8,
            "does not divide the 6 images of each of 8 devices into parts of two or "
            "more; use 1, 2, 3 or 6",
        ),
        (["data.batch_size=8", "step.micro_batches=8"], 1, "use 1, 2 or 4"),
        (
            ["data.batch_size=48", "step.deterministic_reduce=12"],
            8,
            "must divide data.batch_size=48 and be a multiple of the 8 devices; "
            "use 8, 16, 24 or 48",
        ),
        (
            ["mesh.projector=data", "model.embed_dim=100"],
            8,
            "splits columns over 8 devices, which does not divide",
        ),
    ],
)
def test_the_devices_must_share_the_batch_evenly(overrides, devices, words):
    assert words in refusal(*overrides, num_devices=devices)


def test_what_is_assigned_in_code_is_checked_too():
    config = configs.default()
    config.loss.method = "simclr"
    with pytest.raises(ConfigError, match="belongs to the method sfrik"):
        configs.validate(config)


# --- Files ----------------------------------------------------------------------------


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_each_config_file_is_valid_and_tells_how_to_run_it(path):
    config = configs.load(path)
    configs.validate(config)
    story = ast.get_docstring(ast.parse(path.read_text()))
    file = runpy.run_path(str(path))
    assert story is not None
    commands = ("pretrain", "sweep") if "sweep" in file else ("pretrain",)
    words = [f"python -m sfrik_jax {c} --config configs/{path.name}" for c in commands]
    assert any(command in story for command in words)
    assert "Hardware:" in story
    assert "Source:" in story
    for overrides in file.get("sweep", list)():
        texts = [f"{key}={value!r}" for key, value in overrides.items()]
        configs.validate(configs.apply_overrides(config, texts))


@pytest.mark.parametrize("text", ["rbf(2.5, order=4)", "bandlimited(3)"])
def test_a_file_may_name_a_kernel_and_config_json_keeps_the_name(tmp_path, text):
    path = tmp_path / "x.py"
    path.write_text(
        "from sfrik_jax.config import default\n"
        "def get_config():\n"
        "    config = default()\n"
        f"    config.loss.weights = {text!r}\n"
        "    return config\n"
    )
    config = configs.load(path)
    configs.validate(config, num_examples=256_000, num_devices=8)
    assert config.loss.weights == config.loss.to_dict()["weights"] == text
    stored = configs.from_json(configs.to_json(config))
    assert configs.diff(config, stored) == []
    assert configs.diff(config, configs.default()) == [
        ("loss.weights", text, (1.0, 40.0, 40.0))
    ]
    numbers = configs.apply_overrides(stored, ["loss.weights=1,40"])
    assert numbers.loss.weights == (1.0, 40.0)


def test_a_file_may_take_an_argument(tmp_path):
    path = tmp_path / "x.py"
    path.write_text(
        "from sfrik_jax.config import default, loss_section\n"
        "def get_config(arg=None):\n"
        "    config = default()\n"
        "    config.loss = loss_section(arg or 'sfrik')\n"
        "    config.model.hidden_dims = [8, 8]\n"
        "    return config\n"
    )
    assert configs.load(path).loss.method == "sfrik"
    config = configs.load(f"{path}:auh", ["loss.scale=2"])
    assert (config.loss.method, config.loss.scale) == ("auh", 2.0)
    assert config.model.hidden_dims == (8, 8)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("config.data.batchsize = 3", "x.py:4: AttributeError"),
        ("config.data.batch_size = 'a'", "x.py:4: TypeError"),
        ("config.data.batch_size = True", "needs a whole number"),
        ("config.loss = 3", "x.py:4: TypeError"),
        ("config.loss.weights = 3", "loss.weights=3 needs numbers separated"),
        ("config = 5", "must return a ConfigDict"),
        ("config = unknown", "x.py:4: NameError"),
        ("config = = 5", "x.py:4: SyntaxError"),
        ("import sfrik_jaxx", "x.py:4: ModuleNotFoundError"),
    ],
)
def test_a_mistake_in_a_file_is_one_line_with_its_place(tmp_path, line, words):
    path = tmp_path / "x.py"
    path.write_text(
        "from sfrik_jax.config import default\ndef get_config():\n"
        f"    config = default()\n    {line}\n    return config\n"
    )
    with pytest.raises(ConfigError) as caught:
        configs.load(path)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_spec_that_names_no_file_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"no such file; did you mean .*quickstart"):
        configs.load(ROOT / "configs" / "quikstart.py")
    (tmp_path / "x.py").write_text("")
    with pytest.raises(ConfigError, match="no function get_config"):
        configs.load(tmp_path / "x.py")
    (tmp_path / "x.yaml").write_text("")
    with pytest.raises(ConfigError, match=r"give a \.py file"):
        configs.load(tmp_path / "x.yaml")


# --- Stored and compared --------------------------------------------------------------


@pytest.mark.parametrize("method", configs.LOSS_DEFAULTS)
def test_json_and_back_is_the_same_configuration(tmp_path, method):
    config = configs.apply_overrides(
        configs.default(),
        [f"loss.method={method}", "optim.base_lr=0.1", "model.hidden_dims=8,"],
    )
    (tmp_path / "config.json").write_text(configs.to_json(config))
    again = configs.load(tmp_path)
    assert configs.diff(config, again) == []
    assert list(configs.flatten(again)) == list(known({"loss.method": method}))
    assert configs.load(tmp_path / "config.json", ["seed=3"]).seed == 3


def test_a_setting_that_an_older_run_lacks_has_its_default():
    assert configs.from_json('{"seed": 3}').data.batch_size == 2048


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "[" * 100_000])
def test_a_damaged_json_is_corrupt_input(text):
    with pytest.raises(CorruptInputError, match=r"run/config\.json"):
        configs.from_json(text, "run/config.json")


@pytest.mark.parametrize(
    "text", ['{"data": 3}', '{"seed": null}', '{"x": 1}', '{"loss": {"method": []}}']
)
def test_a_json_of_other_settings_is_refused(text):
    with pytest.raises(ConfigError):
        configs.from_json(text)


def test_a_difference_names_key_and_both_values():
    a = configs.default()
    b = configs.apply_overrides(a, ["loss.method=simclr", "seed=4"])
    changes = configs.diff(a, b)
    assert ("seed", 0, 4) in changes
    assert ("loss.temperature", None, 0.15) in changes
    assert ("loss.mmd_coeff", 1.0, None) in changes
    assert configs.diff(a, a) == []


@pytest.mark.parametrize(
    "override",
    [
        "log.every_steps=7",
        "profile.last_step=7",
        "eval.knn_k=7",
        "checkpoint.keep=7",
        "data.workers=7",
        "mesh.data=7",
        "eval.test_split=other",
        "step.nonfinite=skip",
        "optim.epochs=101",
    ],
)
def test_a_resumed_run_may_change_what_leaves_the_weights_alone(override):
    stored = configs.default()
    current = configs.apply_overrides(stored, [override])
    assert configs.diff(stored, current)
    assert resuming.conflicts(configs.diff(stored, current)) == []


@pytest.mark.parametrize(
    "override",
    [
        "seed=7",
        "init_from=x",
        "optim.epochs=99",
        "optim.base_lr=7",
        "data.batch_size=7",
        "data.train_split=other",
        "model.width=7",
        "loss.mmd_coeff=7",
        "loss.method=auh",
    ],
)
def test_a_resumed_run_may_not_change_its_result(override):
    stored = configs.default()
    current = configs.apply_overrides(stored, [override])
    conflicts = resuming.conflicts(configs.diff(stored, current))
    assert conflicts == configs.diff(stored, current)


# --- Derived --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "num_examples", "want"),
    [
        # The runs of the paper, with the short last batch dropped.
        (
            ["optim.base_lr=0.4", "optim.epochs=200"],
            1_281_167,
            Schedule(625, 125_000, 6250.0, 3.2),
        ),
        ([], 260_000, Schedule(126, 12_600, 1260.0, 9.6)),
        ([], 100_000, Schedule(48, 4800, 480.0, 9.6)),
        (["optim.base_lr=0.8"], 260_000, Schedule(126, 12_600, 1260.0, 6.4)),
        (
            ["data.batch_size=64", "optim.epochs=3", "optim.warmup_epochs=0.5"],
            130,
            Schedule(2, 6, 1.0, 0.3),
        ),
    ],
)
def test_steps_and_peak_rate(overrides, num_examples, want):
    config = configs.apply_overrides(configs.default(), overrides)
    got = configs.derive(config, num_examples)
    assert math.isclose(got.peak_lr, want.peak_lr)
    assert got.steps_per_epoch == want.steps_per_epoch
    assert got.total_steps == want.total_steps
    assert got.warmup_steps == want.warmup_steps


def test_no_whole_batch_gives_no_schedule():
    with pytest.raises(ConfigError, match="use at most 100"):
        configs.derive(configs.default(), 100)


@pytest.mark.parametrize("recipe", ["vicreg", "obow", "swav"])
def test_the_paper_s_multi_crops_are_configured(recipe):
    config = configs.load(f"{ROOT}/configs/imagenet20.py:{recipe}")
    configs.validate(config)
    assert config.augment == configs.augment_section(recipe)
    assert config.loss.regularize_all == (recipe != "swav")
    assert configs.load(ROOT / "configs" / "imagenet20.py").augment.recipe == "vicreg"
