"""Fashion-MNIST, 6,000 pictures: a small net whose run takes a minute on two cores.

The ground of the small ablations: every one of them changes a few settings of this.
Source: the method of arXiv 2208.00789 with L = 3; the sizes are chosen here. The first
tenth of the train pictures trains net and probes, the last tenth is the validation
split on which settings are chosen, and the 10,000 test pictures give final figures.

python -m sfrik_jax data prepare fashion_mnist --data-dir data
python -m sfrik_jax pretrain --config configs/fashion_small.py --workdir runs/small

Hardware: two CPU cores, no accelerator. Time and accuracy: docs/results.md.
"""

from pathlib import Path

from ml_collections import ConfigDict

from sfrik_jax import config as configs


def get_config() -> ConfigDict:
    """6,000 + 10,000 grey pictures of 28 px, 6 epochs of 23 steps of 256."""
    config = configs.load(Path(__file__).with_name("quickstart.py")).unlock()

    config.data.name = "fashion_mnist"
    config.data.train_split = "train[:10%]"
    config.data.image_size = 28
    config.data.batch_size = 256

    config.model.width = 16
    config.model.hidden_dims = (512, 512)
    # 2 ‖z - z'‖²: the squared difference is averaged over q = 1024.
    config.loss.alignment_coeff = 2048.0

    config.optim.epochs = 6
    config.optim.warmup_epochs = 1
    config.eval.every_epochs = 0
    config.eval.image_size = 28
    config.eval.resize = 28
    # 20 epochs gave 80.4 % where 100 gave 80.2 % (width 32, 10,000 pictures, 39 steps).
    config.eval.probe_epochs = 20
    config.eval.baselines = False

    config.checkpoint.every_steps = 100
    config.checkpoint.keep = 2
    config.log.every_steps = 23
    return config.lock()
