"""Formats of preference pairs, one file each; `config.PAIR_FORMATS` names them."""
