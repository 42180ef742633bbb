"""Self-supervised pretraining with rotation-invariant kernels, in JAX.

Import the modules by name; nothing is loaded before it is used.

    sfrik_jax.kernels      Legendre polynomials, TruncatedKernel
    sfrik_jax.kernel_presets   weights b_1 … b_L of kernels that have a name
    sfrik_jax.kernel_spectrum  those of any function of the cosine
    sfrik_jax.losses       sfrik, simclr, auh, vicreg, the neighbours, mmd; METHODS
    sfrik_jax.models       BACKBONES, SSLModel
    sfrik_jax.optim        lars, warmup_cosine
    sfrik_jax.augment      photometric operations and views on the device
    sfrik_jax.data         sources, subsets, decoding, recipes, loader
    sfrik_jax.pretrain     the training loop: the file to read first
    sfrik_jax.evaluators   kNN, linear probe, baselines, pictures
    sfrik_jax.weights      PyTorch names and layouts, safetensors
    sfrik_jax.report       one page for one run
"""

from sfrik_jax.version import VERSION as __version__

__all__ = ["__version__"]
