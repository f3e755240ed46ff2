# A copy of everything in another region, locked as the original is. Without replica_region there is none.

locals {
  replicas = var.replica_region == null ? [] : [var.replica_region]
}

resource "aws_s3_bucket" "replica" {
  provider = aws.replica
  count    = length(local.replicas)

  bucket              = "${var.bucket}-replica"
  object_lock_enabled = true

  lifecycle {
    prevent_destroy = true
  }
}

resource "aws_s3_bucket_versioning" "replica" {
  provider = aws.replica
  count    = length(local.replicas)

  bucket = aws_s3_bucket.replica[count.index].id

  versioning_configuration {
    status = "Enabled"
  }
}

resource "aws_s3_bucket_public_access_block" "replica" {
  provider = aws.replica
  count    = length(local.replicas)

  bucket                  = aws_s3_bucket.replica[count.index].id
  block_public_acls       = true
  block_public_policy     = true
  ignore_public_acls      = true
  restrict_public_buckets = true
}

resource "aws_kms_key" "replica" {
  provider = aws.replica
  count    = length(local.replicas)

  description             = "The copy of Seawall's backups in ${var.bucket}"
  enable_key_rotation     = true
  deletion_window_in_days = 30
}

resource "aws_s3_bucket_server_side_encryption_configuration" "replica" {
  provider = aws.replica
  count    = length(local.replicas)

  bucket = aws_s3_bucket.replica[count.index].id

  rule {
    bucket_key_enabled = true

    apply_server_side_encryption_by_default {
      sse_algorithm     = "aws:kms"
      kms_master_key_id = aws_kms_key.replica[count.index].arn
    }
  }
}

resource "aws_s3_bucket_lifecycle_configuration" "replica" {
  provider = aws.replica
  count    = length(local.replicas)

  bucket     = aws_s3_bucket.replica[count.index].id
  depends_on = [aws_s3_bucket_versioning.replica]

  rule {
    id     = "older-versions"
    status = "Enabled"

    filter {}

    noncurrent_version_expiration {
      noncurrent_days = var.object_lock_days
    }

    expiration {
      expired_object_delete_marker = true
    }
  }
}

data "aws_iam_policy_document" "replication_trust" {
  statement {
    actions = ["sts:AssumeRole"]

    principals {
      type        = "Service"
      identifiers = ["s3.amazonaws.com"]
    }
  }
}

data "aws_iam_policy_document" "replication" {
  count = length(local.replicas)

  statement {
    actions   = ["s3:GetReplicationConfiguration", "s3:ListBucket"]
    resources = [aws_s3_bucket.backups.arn]
  }

  statement {
    actions = [
      "s3:GetObjectVersionForReplication",
      "s3:GetObjectVersionAcl",
      "s3:GetObjectVersionTagging",
      "s3:GetObjectRetention",
      "s3:GetObjectLegalHold",
    ]
    resources = ["${aws_s3_bucket.backups.arn}/*"]
  }

  statement {
    actions   = ["s3:ReplicateObject", "s3:ReplicateDelete", "s3:ReplicateTags"]
    resources = ["${aws_s3_bucket.replica[count.index].arn}/*"]
  }

  statement {
    actions   = ["kms:Decrypt"]
    resources = [aws_kms_key.backups.arn]
  }

  statement {
    actions   = ["kms:Encrypt", "kms:GenerateDataKey"]
    resources = [aws_kms_key.replica[count.index].arn]
  }
}

resource "aws_iam_role" "replication" {
  count = length(local.replicas)

  name               = "seawall-${var.bucket}-replication"
  assume_role_policy = data.aws_iam_policy_document.replication_trust.json
}

resource "aws_iam_role_policy" "replication" {
  count = length(local.replicas)

  name   = "replication"
  role   = aws_iam_role.replication[count.index].id
  policy = data.aws_iam_policy_document.replication[count.index].json
}

resource "aws_s3_bucket_replication_configuration" "backups" {
  count = length(local.replicas)

  bucket     = aws_s3_bucket.backups.id
  role       = aws_iam_role.replication[count.index].arn
  depends_on = [aws_s3_bucket_versioning.backups, aws_s3_bucket_versioning.replica]

  rule {
    id     = "everything"
    status = "Enabled"

    filter {}

    # What prune deletes goes there too; its older versions stay as long, under the same locks.
    delete_marker_replication {
      status = "Enabled"
    }

    source_selection_criteria {
      sse_kms_encrypted_objects {
        status = "Enabled"
      }
    }

    destination {
      bucket = aws_s3_bucket.replica[count.index].arn

      encryption_configuration {
        replica_kms_key_id = aws_kms_key.replica[count.index].arn
      }
    }
  }
}
