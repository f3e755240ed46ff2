//! Checksums: which to compute of a body, whether they are what the client said, and how those of parts become one.
//! How S3 defines them: <https://docs.aws.amazon.com/AmazonS3/latest/userguide/checking-object-integrity.html>.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use hyper::HeaderMap;
use s3s::checksum::ChecksumHasher;
use s3s::crypto::{Checksum as _, Crc32, Crc32c, Crc64Nvme, Md5, Sha1, Sha256};
use s3s::dto::{Checksum, ChecksumType};
use s3s::{S3Error, S3Result, TrailingHeaders, s3_error};

/// The algorithms by the ends of their headers, `x-amz-checksum-…`.
const NAMES: [&str; 5] = ["crc32", "crc32c", "crc64nvme", "sha1", "sha256"];

/// The value of one algorithm.
fn value<'a>(checksum: &'a Checksum, name: &str) -> &'a Option<String> {
    match name {
        "crc32" => &checksum.checksum_crc32,
        "crc32c" => &checksum.checksum_crc32c,
        "crc64nvme" => &checksum.checksum_crc64nvme,
        "sha1" => &checksum.checksum_sha1,
        _ => &checksum.checksum_sha256,
    }
}

fn value_mut<'a>(checksum: &'a mut Checksum, name: &str) -> &'a mut Option<String> {
    match name {
        "crc32" => &mut checksum.checksum_crc32,
        "crc32c" => &mut checksum.checksum_crc32c,
        "crc64nvme" => &mut checksum.checksum_crc64nvme,
        "sha1" => &mut checksum.checksum_sha1,
        _ => &mut checksum.checksum_sha256,
    }
}

/// Computes of a body what the client declared, and always CRC64NVME: S3's default, and here the entity tag.
pub(super) struct Verifier {
    declared: Checksum,
    declared_md5: Option<Vec<u8>>,
    announced: Vec<&'static str>,
    trailers: Option<TrailingHeaders>,
    hasher: ChecksumHasher,
    md5: Option<Md5>,
}

/// What a body that arrived intact has for checksums.
pub(super) struct Verified {
    /// What the client declared, or S3's default if it declared nothing.
    pub(super) checksum: Checksum,
    pub(super) crc64nvme: String,
}

impl Verifier {
    pub(super) fn new(
        declared: Checksum,
        content_md5: Option<&str>,
        headers: &HeaderMap,
        trailers: Option<TrailingHeaders>,
    ) -> S3Result<Verifier> {
        let announced = headers.get_all("x-amz-trailer").iter().filter_map(|value| value.to_str().ok());
        let announced: Vec<&str> = announced.flat_map(|names| names.split(',')).map(str::trim).collect();
        let is_announced =
            |name: &str| announced.iter().any(|header| header.strip_prefix("x-amz-checksum-") == Some(name));
        let wanted = |name: &str| value(&declared, name).is_some() || is_announced(name);
        let hasher = ChecksumHasher {
            crc32: wanted("crc32").then(Crc32::new),
            crc32c: wanted("crc32c").then(Crc32c::new),
            sha1: wanted("sha1").then(Sha1::new),
            sha256: wanted("sha256").then(Sha256::new),
            crc64nvme: Some(Crc64Nvme::new()),
        };
        let declared_md5 = match content_md5.map(|md5| BASE64_STANDARD.decode(md5)) {
            None => None,
            Some(Ok(md5)) if md5.len() == 16 => Some(md5),
            Some(_) => return Err(s3_error!(InvalidDigest, "Content-MD5 is not the Base64 of 16 bytes")),
        };
        let md5 = declared_md5.is_some().then(Md5::new);
        let announced = NAMES.into_iter().filter(|name| is_announced(name)).collect();
        Ok(Verifier { declared, declared_md5, announced, trailers, hasher, md5 })
    }

    pub(super) fn update(&mut self, bytes: &[u8]) {
        self.hasher.update(bytes);
        if let Some(md5) = &mut self.md5 {
            md5.update(bytes);
        }
    }

    /// After the last byte, when trailers have arrived too.
    pub(super) fn finish(mut self) -> S3Result<Verified> {
        for name in &self.announced {
            let header = format!("x-amz-checksum-{name}");
            let read =
                |trailers: &HeaderMap| trailers.get(&header).and_then(|value| value.to_str().ok()).map(str::to_owned);
            let Some(declared) = self.trailers.as_ref().and_then(|trailers| trailers.read(read)).flatten() else {
                return Err(s3_error!(InvalidRequest, "the announced trailer {header} did not come"));
            };
            *value_mut(&mut self.declared, name) = Some(declared);
        }
        let computed = self.hasher.finalize();
        for name in NAMES {
            if let Some(declared) = value(&self.declared, name)
                && value(&computed, name).as_ref() != Some(declared)
            {
                return Err(mismatch(name));
            }
        }
        if let (Some(declared), Some(md5)) = (self.declared_md5, self.md5)
            && md5.finalize().as_slice() != declared
        {
            return Err(mismatch("MD5"));
        }
        let crc64nvme = computed.checksum_crc64nvme.expect("always computed");
        let mut checksum = self.declared;
        if NAMES.iter().all(|name| value(&checksum, name).is_none()) {
            checksum.checksum_crc64nvme = Some(crc64nvme.clone());
        }
        checksum.checksum_type = Some(ChecksumType::from_static(ChecksumType::FULL_OBJECT));
        Ok(Verified { checksum, crc64nvme })
    }
}

fn mismatch(name: &str) -> S3Error {
    s3_error!(BadDigest, "the {name} you specified did not match what we received")
}

/// S3's default checksum of an object that was put in place without any.
pub(super) fn of_bytes(bytes: &[u8]) -> Verified {
    let crc64nvme = BASE64_STANDARD.encode(Crc64Nvme::checksum(bytes));
    let checksum = Checksum {
        checksum_crc64nvme: Some(crc64nvme.clone()),
        checksum_type: Some(ChecksumType::from_static(ChecksumType::FULL_OBJECT)),
        ..Checksum::default()
    };
    Verified { checksum, crc64nvme }
}

/// One part of a multipart upload as its checksum matters.
pub(super) struct PartSum<'a> {
    pub(super) bytes: u64,
    pub(super) checksum: &'a Checksum,
    pub(super) crc64nvme: &'a str,
}

/// The checksum of an object made of parts. `algorithm` and `kind` are what the upload was created with; `declared`
/// is what the client says the whole object has.
pub(super) fn of_parts(
    parts: &[PartSum<'_>],
    algorithm: Option<&str>,
    kind: Option<&str>,
    declared: &Checksum,
) -> S3Result<Checksum> {
    let algorithm = algorithm.map_or("crc64nvme".to_owned(), str::to_ascii_lowercase);
    let default_kind = if algorithm == "crc64nvme" { ChecksumType::FULL_OBJECT } else { ChecksumType::COMPOSITE };
    let full = kind.unwrap_or(default_kind) == ChecksumType::FULL_OBJECT;
    let mut whole = Checksum::default();
    if full {
        *value_mut(&mut whole, &algorithm) = Some(combined(parts, &algorithm)?);
        whole.checksum_type = Some(ChecksumType::from_static(ChecksumType::FULL_OBJECT));
    } else {
        *value_mut(&mut whole, &algorithm) = Some(composite(parts, &algorithm)?);
        whole.checksum_type = Some(ChecksumType::from_static(ChecksumType::COMPOSITE));
    }
    for name in NAMES {
        if let Some(declared) = value(declared, name) {
            let known = match value(&whole, name) {
                Some(known) => known.clone(),
                None => combined(parts, name)?,
            };
            if known != *declared {
                return Err(mismatch(name));
            }
        }
    }
    Ok(whole)
}

fn part_value<'a>(part: &'a PartSum<'_>, name: &str) -> S3Result<&'a str> {
    match value(part.checksum, name) {
        Some(sum) => Ok(sum),
        None if name == "crc64nvme" => Ok(part.crc64nvme),
        None => Err(s3_error!(InvalidRequest, "a part was uploaded without the {name} that the upload asks for")),
    }
}

/// The checksum of the parts' checksums, and how many they are.
fn composite(parts: &[PartSum<'_>], name: &str) -> S3Result<String> {
    let mut joined = Vec::new();
    for part in parts {
        joined.extend(BASE64_STANDARD.decode(part_value(part, name)?).expect("we encoded or compared it"));
    }
    let sum = match name {
        "crc32" => Crc32::checksum(&joined).to_vec(),
        "crc32c" => Crc32c::checksum(&joined).to_vec(),
        "sha1" => Sha1::checksum(&joined).to_vec(),
        "sha256" => Sha256::checksum(&joined).to_vec(),
        _ => return Err(s3_error!(InvalidRequest, "{name} is not to be had as a composite checksum")),
    };
    Ok(format!("{}-{}", BASE64_STANDARD.encode(sum), parts.len()))
}

/// The CRC of the joined parts from the CRCs of the parts.
fn combined(parts: &[PartSum<'_>], name: &str) -> S3Result<String> {
    let (width, polynomial) = match name {
        "crc32" => (32, 0xEDB8_8320),
        "crc32c" => (32, 0x82F6_3B78),
        "crc64nvme" => (64, 0x9A6C_9329_AC4B_C9B5),
        _ => return Err(s3_error!(InvalidRequest, "{name} is not to be had as a full object checksum")),
    };
    let mut whole = 0;
    for part in parts {
        let bytes = BASE64_STANDARD.decode(part_value(part, name)?).expect("we encoded or compared it");
        let crc = bytes.iter().fold(0, |crc, byte| crc << 8 | u64::from(*byte));
        whole = multiply(power_of_x(part.bytes, width, polynomial), whole, width, polynomial) ^ crc;
    }
    Ok(BASE64_STANDARD.encode(&whole.to_be_bytes()[8 - width as usize / 8..]))
}

/// `a * b` modulo the polynomial over GF(2), all bit-reversed: the highest bit is the coefficient of x^0.
fn multiply(a: u64, mut b: u64, width: u32, polynomial: u64) -> u64 {
    let mut product = 0;
    for bit in (0..width).rev() {
        if a >> bit & 1 == 1 {
            product ^= b;
        }
        b = b >> 1 ^ if b & 1 == 1 { polynomial } else { 0 };
    }
    product
}

/// `x^(8 * bytes)` modulo the polynomial: what appending that many bytes multiplies a CRC by.
fn power_of_x(mut bytes: u64, width: u32, polynomial: u64) -> u64 {
    let mut power = 1 << (width - 1);
    let mut square = 1 << (width - 9);
    while bytes > 0 {
        if bytes & 1 == 1 {
            power = multiply(power, square, width, polynomial);
        }
        square = multiply(square, square, width, polynomial);
        bytes >>= 1;
    }
    power
}
