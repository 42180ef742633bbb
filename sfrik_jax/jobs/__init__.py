"""Evaluation jobs: from a backbone's weights to a figure with its protocol.

Each job is a command, a tree of settings (`eval_settings.py`) and a module here. It
leaves `eval/NAME.json` in its working directory, and what it needs to go on in
`eval/NAME/`.
"""
