# What azure_storage is on Azure, with the same outputs.

locals {
  role = "${var.name}-unity-catalog"
}

resource "aws_s3_bucket" "this" {
  bucket = var.bucket
  tags   = var.tags

  lifecycle {
    prevent_destroy = true
  }
}

# No versioning on purpose: old versions of objects would keep the rows of erased persons.

resource "aws_s3_bucket_public_access_block" "this" {
  bucket                  = aws_s3_bucket.this.id
  block_public_acls       = true
  block_public_policy     = true
  ignore_public_acls      = true
  restrict_public_buckets = true
}

resource "aws_s3_bucket_server_side_encryption_configuration" "this" {
  bucket = aws_s3_bucket.this.id

  rule {
    apply_server_side_encryption_by_default {
      sse_algorithm = "AES256"
    }
  }
}

# The credential comes first: the role trusts the external id that it is given.
resource "databricks_storage_credential" "this" {
  name            = var.name
  comment         = "Bronze tables and files."
  isolation_mode  = "ISOLATION_MODE_ISOLATED"
  skip_validation = true

  aws_iam_role {
    role_arn = "arn:aws:iam::${var.aws_account_id}:role/${local.role}"
  }
}

data "databricks_aws_unity_catalog_assume_role_policy" "this" {
  aws_account_id = var.aws_account_id
  role_name      = local.role
  external_id    = databricks_storage_credential.this.aws_iam_role[0].external_id
}

data "databricks_aws_unity_catalog_policy" "this" {
  aws_account_id = var.aws_account_id
  bucket_name    = aws_s3_bucket.this.id
  role_name      = local.role
}

resource "aws_iam_role" "this" {
  name               = local.role
  assume_role_policy = data.databricks_aws_unity_catalog_assume_role_policy.this.json
  tags               = var.tags
}

resource "aws_iam_role_policy" "this" {
  name   = "bucket"
  role   = aws_iam_role.this.id
  policy = data.databricks_aws_unity_catalog_policy.this.json
}

resource "databricks_external_location" "this" {
  for_each = toset(["tables", "files"])

  name            = "${var.name}_${each.key}"
  url             = "s3://${aws_s3_bucket.this.id}/${each.key}"
  credential_name = databricks_storage_credential.this.name
  comment         = "Bronze ${each.key}. No grants: READ FILES passes by masks and row filters."
  isolation_mode  = "ISOLATION_MODE_ISOLATED"

  depends_on = [aws_iam_role_policy.this]
}
