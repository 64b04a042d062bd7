"""How a setting names the place where a secret is kept, instead of the secret; `vaults` reads what is there."""

from __future__ import annotations

import re

# With the characters that Azure Key Vault and Databricks allow in the names of vaults, secrets, scopes and keys.
SECRET_PLACE = re.compile(
    r"file:(?P<path>/.+)"
    r"|azure-keyvault://(?P<vault>[A-Za-z][A-Za-z0-9-]{1,22}[A-Za-z0-9])/(?P<secret>[A-Za-z0-9-]{1,127})"
    r"|databricks-secret://(?P<scope>[A-Za-z0-9_.@-]{1,128})/(?P<key>[A-Za-z0-9_.@-]{1,128})"
)
