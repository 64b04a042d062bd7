terraform {
  required_version = ">= 1.9"

  required_providers {
    databricks = {
      source  = "databricks/databricks"
      version = "1.113.0"
    }
  }

  backend "azurerm" {
    use_azuread_auth = true
  }
}

# Signed in by DATABRICKS_HOST and another way of the SDK's.
provider "databricks" {}
