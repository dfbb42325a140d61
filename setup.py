"""All but the packages is in setup.cfg, which cannot add a folder to those that it finds."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["bert_jax*"]), "bert_jax.configs"],
    package_dir={"bert_jax.configs": "configs"},  # the recipes, under another name where installed
)
