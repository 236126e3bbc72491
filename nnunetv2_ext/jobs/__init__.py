"""Commands as jobs: their folders, who runs them (this machine or SLURM), how they go."""
