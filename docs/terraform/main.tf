# A bucket for Seawall: versions, locks, a key of its own, nobody else let in. docs/bucket.md says why each of it is there.

data "aws_caller_identity" "current" {}

resource "aws_s3_bucket" "backups" {
  bucket              = var.bucket
  object_lock_enabled = true

  lifecycle {
    prevent_destroy = true
  }
}

# No default retention: it would lock the tails under open/, which are replaced all day. Seawall asks for a lock with each object
# that is stored for good (object_lock_mode).
resource "aws_s3_bucket_versioning" "backups" {
  bucket = aws_s3_bucket.backups.id

  versioning_configuration {
    status = "Enabled"
  }
}

resource "aws_s3_bucket_public_access_block" "backups" {
  bucket                  = aws_s3_bucket.backups.id
  block_public_acls       = true
  block_public_policy     = true
  ignore_public_acls      = true
  restrict_public_buckets = true
}

resource "aws_s3_bucket_server_side_encryption_configuration" "backups" {
  bucket = aws_s3_bucket.backups.id

  rule {
    bucket_key_enabled = true

    apply_server_side_encryption_by_default {
      sse_algorithm     = "aws:kms"
      kms_master_key_id = aws_kms_key.backups.arn
    }
  }
}

# Nothing that is there expires or freezes: only what nobody sees any more.
resource "aws_s3_bucket_lifecycle_configuration" "backups" {
  bucket     = aws_s3_bucket.backups.id
  depends_on = [aws_s3_bucket_versioning.backups]

  rule {
    id     = "incomplete-uploads"
    status = "Enabled"

    filter {}

    abort_incomplete_multipart_upload {
      days_after_initiation = 3
    }
  }

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

  # Tails are replaced all day, and each has its bytes in a block soon.
  dynamic "rule" {
    for_each = var.clusters

    content {
      id     = "older-tails-${rule.value}"
      status = "Enabled"

      filter {
        prefix = "${var.prefix}/${rule.value}/open/"
      }

      noncurrent_version_expiration {
        noncurrent_days = 3
      }
    }
  }
}

data "aws_iam_policy_document" "tls_only" {
  statement {
    sid       = "TlsOnly"
    effect    = "Deny"
    actions   = ["s3:*"]
    resources = [aws_s3_bucket.backups.arn, "${aws_s3_bucket.backups.arn}/*"]

    principals {
      type        = "*"
      identifiers = ["*"]
    }

    condition {
      test     = "Bool"
      variable = "aws:SecureTransport"
      values   = ["false"]
    }
  }
}

resource "aws_s3_bucket_policy" "backups" {
  bucket     = aws_s3_bucket.backups.id
  policy     = data.aws_iam_policy_document.tls_only.json
  depends_on = [aws_s3_bucket_public_access_block.backups]
}

# The account administers the key; the roles use it, through S3.
data "aws_iam_policy_document" "key" {
  statement {
    sid       = "Administer"
    actions   = ["kms:*"]
    resources = ["*"]

    principals {
      type        = "AWS"
      identifiers = ["arn:aws:iam::${data.aws_caller_identity.current.account_id}:root"]
    }
  }

  statement {
    sid       = "Write"
    actions   = ["kms:GenerateDataKey", "kms:Decrypt"]
    resources = ["*"]

    principals {
      type        = "AWS"
      identifiers = [aws_iam_role.seawall["archive"].arn, aws_iam_role.seawall["prune"].arn]
    }
  }

  # Where the role may store reports of drills and the audit trail, it needs what the others do.
  statement {
    sid       = "Read"
    actions   = ["kms:Decrypt"]
    resources = ["*"]

    principals {
      type        = "AWS"
      identifiers = [aws_iam_role.seawall["restore"].arn]
    }
  }
}

resource "aws_kms_key" "backups" {
  description             = "Seawall's backups in ${var.bucket}"
  enable_key_rotation     = true
  deletion_window_in_days = 30
  policy                  = data.aws_iam_policy_document.key.json
}

resource "aws_kms_alias" "backups" {
  name          = "alias/seawall-${replace(var.bucket, ".", "-")}"
  target_key_id = aws_kms_key.backups.key_id
}
