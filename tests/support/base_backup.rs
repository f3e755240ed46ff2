//! What a server sends in a base backup: the members of its tar, and what its manifest says of each.
#![allow(unreachable_pub, missing_docs)]

/// A file in the tar: header, content, and what fills it up.
pub fn member(path: &str, content: &[u8]) -> Vec<u8> {
    let padding = content.len().next_multiple_of(512) - content.len();
    [&header(path, content.len())[..], content, &[0; 512][..padding]].concat()
}

/// A file in the manifest.
pub fn manifest_entry(path: &str, content: &[u8]) -> String {
    let sum = hex(&crc32c::crc32c(content).to_le_bytes());
    format!(
        "{{ \"Path\": \"{path}\", \"Size\": {}, \"Last-Modified\": \"2026-11-20 14:03:00 GMT\", \
         \"Checksum-Algorithm\": \"CRC32C\", \"Checksum\": \"{sum}\" }}",
        content.len()
    )
}

/// A ustar header as PostgreSQL writes it.
fn header(path: &str, bytes: usize) -> [u8; 512] {
    let mut block = [0; 512];
    let fields: [(usize, &[u8]); 7] = [
        (0, path.as_bytes()),
        (100, b"0000600\0"),
        (124, &format!("{bytes:011o} ").into_bytes()),
        (136, b"14000000000 "),
        (148, b"        "),
        (156, b"0"),
        (257, b"ustar\x0000"),
    ];
    let mut sum = 0;
    for (at, field) in fields {
        block[at..at + field.len()].copy_from_slice(field);
        sum += field.iter().map(|byte| u32::from(*byte)).sum::<u32>();
    }
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
