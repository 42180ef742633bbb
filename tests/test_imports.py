"""Who may import whom: downwards only, and each third-party library by its door.

The imports are read from the source, those inside functions included.
"""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = "sfrik_jax"

# From the bottom up; names are below `sfrik_jax`. A module imports only from rows
# below its own. The package itself is the table of contents and may name anything.
LEVELS = [
    "addresses checkpoint.store collectives commands config_ranges data data.jpeg "
    "data.progress device_checks errors jobs kernel_presets kernels leaves memory_use "
    "models.cpu_convolutions neighbours optim planning planning.hardware redaction "
    "report.compare.look report.compare.statistics report.page settings target version",
    "checkpoint.digest config_files data.builders.archives data.builders.records "
    "data.folders data.idx data.pipeline data.prepared data.records data.resize "
    "data.subset_setting data.views eval_settings evaluators.baselines "
    "evaluators.checks evaluators.features evaluators.heads evaluators.multi_labels "
    "feature_set.checks feature_set.layout files grids interrupts kernel_spectrum mesh "
    "mmd_forms models.layers models.norm planning.programs processes.cluster "
    "processes.talk report.run resample weights.exported weights.stored",
    "augment checkpoint.manifest checkpoint.room covariance data.builders.base "
    "data.builders.registered data.decode data.fashion_mini.make data.hashes "
    "data.photos data.sources data.subsets eval_checks evaluators.descent "
    "evaluators.gauges evaluators.knn evaluators.linear evaluators.scores "
    "evaluators.voc_svm feature_set.described feature_set.shard "
    "feature_set.shard_file locks mmd models.projector models.resnet "
    "planning.arithmetic planning.memory planning.received planning.told "
    "processes.roll_call provenance report.curves report.records report.verdict "
    "sweeps.board sweeps.plans "
    "weights.archives weights.pickled weights.safetensors_files",
    "checkpoint.description config_checks data.builders.binary "
    "data.builders.fashion data.builders.imagenet data.builders.patches data.joined "
    "data.tfds_source embeddings encoding evaluators evaluators.choosing "
    "evaluators.pictures feature_set.reader feature_set.writer models processes "
    "report.accuracy report.evaluations sweeps.running weights.torch_files",
    "commands.parsing config_keys data.bad_pictures data.builders data.checking "
    "data.opening evaluators.logreg faults feature_set finite "
    "neighbours.correlations neighbours.gaussian neighbours.slices "
    "neighbours.spectra passes processes.rows "
    "report train_state weights.names",
    "checkpoint.folder config data.crops data.images fixed_order "
    "losses metrics number_faults report.compare.figures report.compare.gather "
    "report.compare.profiles report.compare.tables resuming summary sweeps.tuning "
    "watchdog weights.card weights.export weights.files",
    "checkpoint commands.configuration commands.running data.loader image_set "
    "report.compare.cells rundir spectra step sweeps weights",
    "commands.sweeping evaluation jobs.results previews report.compare.findings "
    "report.compare.heat report.compare.kernel_plots report.compare.records run_log "
    "subject warm_start",
    "commands.weights jobs.parts loop report.compare.plots",
    "jobs.bench jobs.features pretrain report.compare",
    "commands.data commands.reports commands.training jobs.answers jobs.supervised "
    "planning.counted replay",
    "commands.replaying doctor.findings jobs.finetune jobs.gauges jobs.linear "
    "planning.plan processes.local",
    "commands.planning doctor.devices doctor.installed doctor.places jobs.stored",
    "doctor.trials jobs.runner",
    "doctor jobs.follow",
    "commands.checkup commands.evaluation",
    "__main__",
    PACKAGE,
]
LEVEL_OF = {
    module if module == PACKAGE else f"{PACKAGE}.{module}": level
    for level, modules in enumerate(LEVELS)
    for module in modules.split()
}

# The modules that may import a library; a package stands for all of its modules. A
# ConfigDict goes no deeper than the run and its evaluation.
EVERYWHERE = ("jax", "numpy", "chex")
DOORS = {
    "absl": "data",
    "array_record": "data",
    "cv2": "data",
    "flax": "models train_state",
    "grain": "data",
    "matplotlib": "report",
    "ml_collections": "config config_files rundir evaluation pretrain subject jobs "
    "commands doctor planning replay sweeps",
    "optax": "optim step train_state evaluators.heads evaluators.descent jobs.finetune",
    "orbax": "checkpoint.store",
    "PIL": "data evaluators.pictures",
    "rich": "data.progress metrics sweeps.board",
    "safetensors": "weights",
    "scipy": "report.compare.statistics",
    "sklearn": "evaluators.voc_svm",
    "simplejpeg": "data",
    "tensorboardX": "metrics",
    "tensorflow_datasets": "data",
}
# The mathematics needs arrays and nothing else.
PURE = {
    "kernels": {"jax"},
    "kernel_presets": {"numpy"},
    "kernel_spectrum": {"numpy", f"{PACKAGE}.kernel_presets"},
    "collectives": {"jax"},
    "target": {"jax"},
    "report.compare.profiles": {"numpy", f"{PACKAGE}.kernel_presets"},
    "report.compare.statistics": {"scipy"},
    "mmd_forms": {
        "jax",
        f"{PACKAGE}.collectives",
        f"{PACKAGE}.kernels",
        f"{PACKAGE}.target",
    },
    "mmd": {
        "jax",
        f"{PACKAGE}.collectives",
        f"{PACKAGE}.kernels",
        f"{PACKAGE}.mmd_forms",
        f"{PACKAGE}.target",
    },
    "covariance": {"jax", f"{PACKAGE}.collectives", f"{PACKAGE}.mmd_forms"},
    "embeddings": {
        "jax",
        "chex",
        f"{PACKAGE}.collectives",
        f"{PACKAGE}.covariance",
        f"{PACKAGE}.mmd_forms",
    },
    "neighbours.correlations": {
        "jax",
        f"{PACKAGE}.embeddings",
        f"{PACKAGE}.mmd_forms",
    },
    "neighbours.gaussian": {"jax", f"{PACKAGE}.embeddings", f"{PACKAGE}.mmd_forms"},
    "neighbours.slices": {
        "jax",
        "numpy",
        f"{PACKAGE}.covariance",
        f"{PACKAGE}.embeddings",
    },
    "neighbours.spectra": {
        "jax",
        f"{PACKAGE}.collectives",
        f"{PACKAGE}.covariance",
        f"{PACKAGE}.embeddings",
    },
    "losses": {
        "jax",
        "chex",
        f"{PACKAGE}.collectives",
        f"{PACKAGE}.covariance",
        f"{PACKAGE}.embeddings",
        f"{PACKAGE}.kernels",
        f"{PACKAGE}.mmd",
        f"{PACKAGE}.mmd_forms",
        f"{PACKAGE}.neighbours.correlations",
        f"{PACKAGE}.neighbours.gaussian",
        f"{PACKAGE}.neighbours.slices",
        f"{PACKAGE}.neighbours.spectra",
    },
}
# Needed neither to train nor to evaluate; only benches compare with them.
ABSENT = {"tensorflow", "torch", "torchvision"}


def modules() -> dict[str, Path]:
    found = {}
    for path in sorted((ROOT / PACKAGE).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def imports(path: Path) -> set[str]:
    """Full names of our own modules that a file imports, and other top-level names."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.module and not node.level, f"{path}: imports are absolute"
            full = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= {name if name in MODULES else node.module for name in full}
    return {name if name in MODULES else name.partition(".")[0] for name in names}


def third_party(path: Path) -> set[str]:
    libraries = {name.partition(".")[0] for name in imports(path)}
    return libraries - set(sys.stdlib_module_names) - {PACKAGE}


def test_every_module_has_its_level():
    new, gone = MODULES.keys() - LEVEL_OF, LEVEL_OF.keys() - MODULES
    assert not new, f"{sorted(new)}: add to LEVELS in {Path(__file__).name}"
    assert not gone, f"{sorted(gone)}: not there any more, take out of LEVELS"
    assert len(LEVEL_OF) == sum(len(level.split()) for level in LEVELS), "named twice"


@pytest.mark.parametrize("module", sorted(LEVEL_OF.keys() & MODULES))
def test_imports_go_downwards(module):
    ours = {name for name in imports(MODULES[module]) if name in LEVEL_OF}
    upwards = {name for name in ours if LEVEL_OF[name] >= LEVEL_OF[module]}
    assert not upwards, f"{module} must not import {sorted(upwards)}"


@pytest.mark.parametrize("module", sorted(MODULES))
def test_each_library_comes_in_by_its_door(module):
    for library in third_party(MODULES[module]) - set(EVERYWHERE):
        assert library in DOORS, f"{module} imports {library}: give it a door in DOORS"
        doors = [f"{PACKAGE}.{door}" for door in DOORS[library].split()]
        assert any(f"{module}.".startswith(f"{door}.") for door in doors), (
            f"{module} imports {library}; its door is {DOORS[library]}"
        )


@pytest.mark.parametrize("module", PURE)
def test_the_mathematics_needs_arrays_alone(module):
    allowed = PURE[module] | set(sys.stdlib_module_names)
    assert imports(MODULES[f"{PACKAGE}.{module}"]) <= allowed


def test_config_files_need_the_configuration_alone():
    for path in (ROOT / "configs").glob("*.py"):
        ours = {name for name in imports(path) if name.startswith(PACKAGE)}
        assert ours <= {f"{PACKAGE}.config", f"{PACKAGE}.settings"}, path
        assert third_party(path) <= {"ml_collections"}, path


def test_neither_tensorflow_nor_torch_is_imported():
    folders = [ROOT / name for name in (PACKAGE, "configs")]
    for path in (path for folder in folders for path in folder.rglob("*.py")):
        assert not third_party(path) & ABSENT, path
