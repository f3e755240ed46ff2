variable "region" {
  description = "The bucket's region."
  type        = string
}

variable "replica_region" {
  description = "Where a copy of everything goes; null: nowhere."
  type        = string
  default     = null
}

variable "bucket" {
  description = "The bucket's name. The copy's is the same with -replica behind it."
  type        = string
}

variable "prefix" {
  description = "The folder in the bucket that holds the repository: the end of s3://bucket/prefix."
  type        = string
  default     = "postgres"

  validation {
    condition     = can(regex("^[A-Za-z0-9._=-]+(/[A-Za-z0-9._=-]+)*$", var.prefix))
    error_message = "A prefix such as postgres or team/postgres, without a slash at its ends."
  }
}

variable "clusters" {
  description = "The clusters in the repository, by the names that Seawall has for them."
  type        = list(string)
  default     = ["main"]
}

variable "object_lock_days" {
  description = "The days for which what was overwritten or deleted can be got back, and for which a role can lock: object_lock_days in Seawall's [s3], or more."
  type        = number
  default     = 30
}

variable "object_lock_mode" {
  description = "object_lock_mode in Seawall's [s3]. The roles are refused the other one."
  type        = string
  default     = "governance"

  validation {
    condition     = contains(["governance", "compliance"], var.object_lock_mode)
    error_message = "It is governance or compliance."
  }
}

variable "trusted" {
  description = "Who may take each role: ARNs of users, roles or accounts, by archive, restore and prune."
  type        = map(list(string))

  validation {
    condition     = toset(keys(var.trusted)) == toset(["archive", "restore", "prune"])
    error_message = "The roles are archive, restore and prune."
  }
}
