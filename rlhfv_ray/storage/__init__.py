"""Folders of results, on a disk or in a bucket, with their leases and stages."""
