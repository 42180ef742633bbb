"""Losses of other papers that keep embeddings apart, in the form of `losses`.

    slices        laws of random one-dimensional projections: sigreg, sphere_slices
    gaussian      a Gaussian kernel against a Gaussian law: gaussian_mmd
    spectra       eigenvalues: wasserstein, vne, coding_rate, mmcr
    correlations  between the dimensions of two views: barlow_twins

`losses.METHODS` has them all by name. docs/maths.md has a table of the formulas.
"""
