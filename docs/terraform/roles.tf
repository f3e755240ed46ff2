# The three roles, with the policies that docs/bucket.md shows.

data "aws_iam_policy_document" "trust" {
  for_each = var.trusted

  statement {
    actions = ["sts:AssumeRole"]

    principals {
      type        = "AWS"
      identifiers = each.value
    }
  }
}

resource "aws_iam_role" "seawall" {
  for_each = var.trusted

  name               = "seawall-${var.bucket}-${each.key}"
  assume_role_policy = data.aws_iam_policy_document.trust[each.key].json
}

resource "aws_iam_role_policy" "seawall" {
  for_each = var.trusted

  name = "seawall"
  role = aws_iam_role.seawall[each.key].id
  policy = templatefile("${path.module}/policies/${each.key}.json", {
    bucket = aws_s3_bucket.backups.id
    prefix = var.prefix
    # A day more than asked for: clocks differ.
    lock_days    = var.object_lock_days + 1
    refused_mode = var.object_lock_mode == "compliance" ? "GOVERNANCE" : "COMPLIANCE"
  })
}
