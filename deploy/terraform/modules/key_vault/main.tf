# No secret is in Terraform, nor in its state: values are put into the vault by hand (docs/keys.md).

data "azurerm_client_config" "current" {}

resource "azurerm_key_vault" "this" {
  name                       = var.name
  location                   = var.location
  resource_group_name        = var.resource_group
  tenant_id                  = data.azurerm_client_config.current.tenant_id
  sku_name                   = "standard"
  rbac_authorization_enabled = true
  purge_protection_enabled   = true
  soft_delete_retention_days = 90
  tags                       = var.tags

  lifecycle {
    prevent_destroy = true
  }
}

resource "azurerm_role_assignment" "reads" {
  for_each = {
    databricks = var.databricks_application_object_id
    platform   = var.platform_object_id
  }

  scope                = azurerm_key_vault.this.id
  role_definition_name = "Key Vault Secrets User"
  principal_id         = each.value
}

# Databricks takes a Key Vault only from somebody who is signed in to Entra (`az login`), not from a token.
resource "databricks_secret_scope" "this" {
  name = var.scope

  keyvault_metadata {
    resource_id = azurerm_key_vault.this.id
    dns_name    = azurerm_key_vault.this.vault_uri
  }

  depends_on = [azurerm_role_assignment.reads]
}

resource "databricks_secret_acl" "platform" {
  scope      = databricks_secret_scope.this.name
  principal  = var.platform
  permission = "READ"
}
