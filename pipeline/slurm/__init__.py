"""Runs on a Slurm cluster: rendered sbatch scripts, their chain, and what became of it."""
