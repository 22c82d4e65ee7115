"""Converters: one data set on disk each, to clips for shards. Installed as `sr3d_data`."""
