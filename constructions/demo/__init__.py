"""The main job, `python -m constructions`: a network, its certificates and a figure of its heads.

Needs the extra `demo`; nothing else in the package imports it.
"""
