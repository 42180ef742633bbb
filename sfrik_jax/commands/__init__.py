"""The commands of the command line: each module adds its own and says what they do.

Modules that load jax are imported inside the functions, after the configuration is
checked, so that a wrong setting is reported at once.
"""
