//! What can be set about S3.

use crate::secret::Secret;
use aws_credential_types::provider::SharedCredentialsProvider;
use jiff::SignedDuration;

/// How to reach a bucket and what to ask of it. What is `None` comes from the environment and `~/.aws`, or is the
/// server's default.
#[derive(Clone, Default, Debug)]
pub struct S3Options {
    /// The bucket's region, such as `eu-central-1`.
    pub region: Option<String>,
    /// Another server than AWS: `https://host:port`.
    pub endpoint: Option<String>,
    /// True: the bucket is a part of the path, not of the host's name. `None`: so with every endpoint but Amazon's.
    pub path_style: Option<bool>,
    /// Encryption by the server.
    pub sse: Option<ServerSideEncryption>,
    /// The KMS key for [`ServerSideEncryption::Kms`]: its id, ARN or alias. `None`: the account's default key.
    pub kms_key: Option<String>,
    /// Such as `STANDARD_IA`.
    pub storage_class: Option<String>,
    /// The checksum of what is written.
    pub checksum: Checksum,
    /// How names are kept from getting second bytes.
    pub conditional_writes: Conditional,
    /// How what is stored for good is kept from being deleted.
    pub lock: ObjectLock,
    /// The key's id, where [`S3Options::secret_access_key`] is its other half.
    pub access_key_id: Option<Secret>,
    /// Both or none. `None`: as `credentials` says.
    pub secret_access_key: Option<Secret>,
    /// Who one is. `None`: the usual chain of environment, `~/.aws`, web identity, container and machine.
    pub credentials: Option<SharedCredentialsProvider>,
}

/// Who holds the key of what the server encrypts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ServerSideEncryption {
    /// S3 does (`AES256`).
    S3,
    /// The key management service does (`aws:kms`).
    Kms,
}

/// A checksum sent with what is written, for the server to verify and keep.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum Checksum {
    /// CRC32C of the whole object.
    #[default]
    Crc32c,
    /// None, for old servers that refuse the header.
    Off,
}

/// How a create makes sure that it overwrites nothing.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum Conditional {
    /// `If-None-Match: *`: the server decides, in one step.
    #[default]
    Header,
    /// For servers that ignore that header: look, put with an id, look whose id is there. Two writers that put within
    /// the same moment can both be told that theirs is new.
    Head,
}

/// S3 Object Lock, asked for with every object that is stored for good.
#[derive(Clone, Copy, Debug)]
pub struct ObjectLock {
    /// How strictly. `None`: it is not asked for.
    pub mode: Option<LockMode>,
    /// For so many days from when it is stored.
    pub days: u32,
    /// Which objects are stored for good, by their names in the store.
    pub is_permanent: fn(&str) -> bool,
}

impl ObjectLock {
    /// S3's longest, in days: a hundred years ("Object Lock considerations" in the Amazon S3 user guide).
    pub const DAYS_MAX: u32 = 36_500;

    /// For how long.
    pub fn period(&self) -> SignedDuration {
        SignedDuration::from_hours(24 * i64::from(self.days))
    }
}

impl Default for ObjectLock {
    fn default() -> ObjectLock {
        ObjectLock { mode: None, days: 0, is_permanent: |_| true }
    }
}

/// Who may delete what is locked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LockMode {
    /// Whoever has the right to go round it.
    Governance,
    /// Nobody.
    Compliance,
}
