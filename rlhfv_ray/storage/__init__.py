"""Folders of results, on a disk or behind an address: stages, leases, mirrors."""
