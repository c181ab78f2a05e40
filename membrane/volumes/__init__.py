"""Volumes block by block, here or on a Dask cluster; needs requirements/cluster.txt."""
