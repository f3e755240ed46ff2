output "repo" {
  description = "Seawall's repo."
  value       = "s3://${aws_s3_bucket.backups.id}/${var.prefix}"
}

output "roles" {
  description = "The ARN of each role, for role_arn in the profiles of ~/.aws/config."
  value       = { for name, role in aws_iam_role.seawall : name => role.arn }
}

output "replica" {
  description = "The repository's copy, for `seawall list --repo`; null without one."
  value       = one([for bucket in aws_s3_bucket.replica : "s3://${bucket.id}/${var.prefix}"])
}
