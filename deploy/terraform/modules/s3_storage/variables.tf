variable "name" {
  description = "Prefix of the names on Unity Catalog and of the IAM role."
  type        = string
}

variable "bucket" {
  description = "Name of the bucket; unique in AWS."
  type        = string
}

variable "aws_account_id" {
  description = "The AWS account of bucket and role."
  type        = string
}

variable "tags" {
  description = "Tags of the AWS resources."
  type        = map(string)
}
