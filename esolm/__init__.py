"""Pretraining of Eso-LMs: the one name under which everything is installed.

In a checkout this folder holds links to the packages and to the configurations and Slurm templates
beside them; a wheel holds the same folders themselves.
"""
