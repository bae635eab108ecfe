"""Preference losses beside DPO's, one file each; `config.PREFERENCE_LOSSES` names them."""
