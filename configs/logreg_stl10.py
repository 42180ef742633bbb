"""Logistic regression on STL10's features: 5,000 labelled pictures, 8,000 to test on.

Source: the STL10 evaluation of arXiv 2208.00789: pictures of 96 px as they are, and on
their features SGD with momentum 0.9, rate 0.4, decay 1e-6, batch 256, 100 epochs. The
normalisation is that of the weights: STL10's for a run of configs/stl10.py.

python -m sfrik_jax logreg --config configs/logreg_stl10.py --weights runs/stl10

The optimum instead of so many epochs: L-BFGS over a grid of regularisation, the best by
a tenth of the train pictures, which the fit then does not see:

python -m sfrik_jax logreg --config configs/logreg_stl10.py:lbfgs \
    --weights runs/stl10 --name logreg_lbfgs

Hardware: one accelerator, or a CPU: 13,000 pictures of 96 px are encoded once.
Time and accuracy: not yet run here. Published accuracy: —
"""

from ml_collections import ConfigDict

from sfrik_jax.config import default


def get_config(solver: str = "sgd") -> ConfigDict:
    """The original's "sgd", or "lbfgs" with its regularisation chosen."""
    config = default("logreg")

    config.data.name = "stl10"
    config.data.train_split = "train"
    config.data.test_split = "test"
    config.data.image_size = 96
    config.data.resize = 96

    config.logreg.solver = solver
    config.logreg.learning_rates = (0.4,)
    config.logreg.weight_decays = (1e-6,)
    config.logreg.batch_size = 256
    config.logreg.epochs = 100
    if solver == "lbfgs":
        config.data.train_split = "train[:90%]"
        config.data.val_split = "train[90%:]"
        config.logreg.l2 = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
        config.logreg.standardize = True
    return config
