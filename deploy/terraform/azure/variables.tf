variable "environment" {
  description = "dev, qa or prod."
  type        = string

  validation {
    condition     = contains(["dev", "qa", "prod"], var.environment)
    error_message = "environment is dev, qa or prod."
  }
}

variable "catalog" {
  description = "The catalog of the bronze schemas."
  type        = string
}

variable "create_catalog" {
  description = "Whether Terraform makes the catalog; false where the workspace came with it."
  type        = bool
}

variable "schemas" {
  description = "The bronze schemas: made from the tables' declarations, see declared.auto.tfvars.json."
  type        = list(string)
}

variable "roles" {
  description = "Role → account group that works with the tables: made from the declarations likewise."
  type        = map(string)
}

variable "location" {
  description = "Azure region."
  type        = string
}

variable "resource_group" {
  description = "An existing resource group."
  type        = string
}

variable "storage_account" {
  description = "Name of the storage account to make; unique in Azure."
  type        = string
}

variable "replication" {
  description = "Replication of the storage account."
  type        = string
  default     = "ZRS"
}

variable "key_vault" {
  description = "Name of the Key Vault to make; unique in Azure."
  type        = string
}

variable "databricks_application_object_id" {
  description = "Object id of the enterprise application AzureDatabricks in this tenant; it reads the Key Vault for secret scopes."
  type        = string
}

variable "platform_object_id" {
  description = "Entra object id of the service principal that loads; it reads the master key."
  type        = string
}

variable "workspace_url" {
  description = "URL of the Databricks workspace."
  type        = string
}

variable "workspace_resource_id" {
  description = "Azure resource id of the Databricks workspace."
  type        = string
}

variable "node_type" {
  description = "Node type of job clusters and of the pool."
  type        = string
  default     = "Standard_D4ds_v5"
}

variable "max_workers" {
  description = "Most workers of a job cluster."
  type        = number
}

variable "warehouse_size" {
  description = "Size of the SQL warehouse."
  type        = string
  default     = "2X-Small"
}
