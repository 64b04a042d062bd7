variable "catalog" {
  description = "Name of the catalog."
  type        = string
}

variable "create_catalog" {
  description = "Whether to make the catalog; false where the workspace came with it."
  type        = bool
}

variable "schemas" {
  description = "The bronze schemas."
  type        = list(string)
}

variable "tables_url" {
  description = "Where managed tables lie."
  type        = string
}

variable "files_url" {
  description = "Where files arrive and are archived."
  type        = string
}

variable "platform" {
  description = "The account group of the service principal that loads."
  type        = string
}
