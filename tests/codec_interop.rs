//! Objects against the `lz4` and `zstd` programs: what we write they print, what they write we read.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use seawall::codec::{
    CodecError, Compression, FRAME_BYTES, FrameDecoder, FrameEncoder, FrameSplitter, RawFrame, decode_object,
    identity_frame,
};
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

/// Text, zeros and noise in turn, so that some blocks shrink and some are stored as they are.
fn sample(bytes: usize) -> Vec<u8> {
    let mut seed = 7u64;
    let mut sample = Vec::with_capacity(bytes + (1 << 16));
    while sample.len() < bytes {
        match (sample.len() >> 17) % 4 {
            0 => sample.extend(format!("row {} of many rows; ", sample.len()).into_bytes()),
            1 => sample.extend_from_slice(&[0; 500]),
            _ => {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                sample.extend_from_slice(&(seed >> 24).to_le_bytes()[..5]);
            }
        }
    }
    sample.truncate(bytes);
    sample
}

/// Runs `lz4` or `zstd` on a file and returns what it prints.
fn run(program: &str, arguments: &[&str], file: &Path) -> Vec<u8> {
    let output = Command::new(program)
        .args(arguments)
        .args(["-q", "-c"])
        .arg(file)
        .stderr(Stdio::piped())
        .output()
        .unwrap_or_else(|error| panic!("cannot run `{program}`: {error}. Install it: `apt-get install {program}`"));
    assert!(
        output.status.success(),
        "`{program} {}` ended with {}: {}",
        arguments.join(" "),
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    output.stdout
}

fn file_with(bytes: &[u8]) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(bytes).unwrap();
    file
}

#[test]
fn the_programs_print_the_plain_bytes_of_our_objects() {
    the_program_prints_our_objects("lz4", Compression::Lz4);
    the_program_prints_our_objects("lz4", Compression::None);
    the_program_prints_our_objects("zstd", Compression::Zstd(1));
}

fn the_program_prints_our_objects(program: &str, compression: Compression) {
    for plain_bytes in [0, 1, 12, 65_536, 65_537, FRAME_BYTES, 2 * FRAME_BYTES + 12_345] {
        // Given an object with an identity, and for nothing at all an empty frame,
        let plain = sample(plain_bytes);
        let mut encoder = FrameEncoder::new(compression);
        let mut object = identity_frame(b"{\"identity\": true}").to_vec();
        if plain.is_empty() {
            object.extend_from_slice(&encoder.encode(b""));
        }
        let mut hashed = Vec::new();
        for (number, frame) in plain.chunks(FRAME_BYTES).enumerate() {
            object.extend_from_slice(&match number % 2 {
                0 => encoder.encode_hashed(frame, |bytes| hashed.extend_from_slice(bytes)),
                _ => {
                    hashed.extend_from_slice(frame);
                    encoder.encode(frame)
                }
            });
        }
        assert!(hashed == plain, "of {plain_bytes} bytes, others were hashed than were compressed");
        // when the program decompresses it (and verifies its checksums), then the plain bytes come out.
        let file = file_with(&object);
        assert!(run(program, &["-d"], file.path()) == plain, "{compression}: {plain_bytes} bytes came out different");
        run(program, &["-t"], file.path());
    }
}

#[test]
fn we_read_what_the_programs_write() {
    let plain = sample(FRAME_BYTES + 1_234_567);
    let source = file_with(&plain);
    let ways: [&[&str]; 14] = [
        &["lz4", "-1"],
        &["lz4", "-9"],
        &["lz4", "-B4"],
        &["lz4", "-B5", "-BX"],
        &["lz4", "-B4", "-BD"],
        &["lz4", "-B7", "-BD", "-9", "-BX"],
        &["lz4", "--content-size"],
        &["lz4", "--no-frame-crc", "-B6"],
        &["lz4", "--fast=9", "-BD", "--content-size"],
        &["zstd", "-1"],
        &["zstd", "-9", "--no-check"],
        &["zstd", "--fast=5"],
        &["zstd", "-3", "--no-content-size"],
        &["zstd", "--long=23"],
    ];
    for way in ways {
        let object = run(way[0], &way[1..], source.path());
        let decoded = decode_object(&object, plain.len()).unwrap_or_else(|error| panic!("{way:?}: {error}"));
        assert!(decoded.plain == plain, "{way:?} was read as other bytes");

        // Two such files in one are two frames, however they arrive.
        let twice = [&object[..], &object].concat();
        let mut splitter = FrameSplitter::new(object.len());
        let mut decoder = FrameDecoder::new();
        let mut joined = Vec::new();
        for piece in twice.chunks(100_003) {
            splitter.push(piece.to_vec().into());
            while let Some(frame) = splitter.next().unwrap() {
                let RawFrame::Data(raw) = frame else { panic!("{way:?} has an identity") };
                decoder.decode(&raw, &mut joined, plain.len()).unwrap();
            }
        }
        splitter.finish().unwrap();
        assert!(joined == [&plain[..], &plain].concat(), "{way:?} twice was read as other bytes");
    }
}

#[test]
fn the_legacy_format_is_refused_by_name() {
    let source = file_with(&sample(100_000));
    let object = run("lz4", &["-l"], source.path());
    assert!(matches!(decode_object(&object, 1 << 20), Err(CodecError::Legacy)));
    let mut splitter = FrameSplitter::new(1 << 20);
    splitter.push(object.into());
    assert!(matches!(splitter.next(), Err(CodecError::Legacy)));
}
