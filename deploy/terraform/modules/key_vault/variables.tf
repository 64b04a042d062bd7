variable "name" {
  description = "Name of the Key Vault."
  type        = string
}

variable "scope" {
  description = "Name of the secret scope."
  type        = string
}

variable "location" {
  description = "Azure region."
  type        = string
}

variable "resource_group" {
  description = "An existing resource group."
  type        = string
}

variable "databricks_application_object_id" {
  description = "Object id of the enterprise application AzureDatabricks."
  type        = string
}

variable "platform_object_id" {
  description = "Entra object id of the service principal that loads."
  type        = string
}

variable "platform" {
  description = "The account group of that service principal."
  type        = string
}

variable "tags" {
  description = "Tags of the Key Vault."
  type        = map(string)
}
