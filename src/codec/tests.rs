//! Frames: round trips, every way to cut them, every way to damage them.

use super::*;
use proptest::prelude::*;

/// Bytes in which some stretches repeat and some do not.
fn sample(bytes: usize, mut seed: u64) -> Vec<u8> {
    let mut sample = Vec::with_capacity(bytes + 8);
    while sample.len() < bytes {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        match seed >> 61 {
            0..3 => sample.extend_from_slice(&seed.to_be_bytes()),
            3..6 => sample.extend_from_slice(b"INSERT INTO pgbench_history "),
            _ => sample.extend(std::iter::repeat_n(0, (seed >> 40) as usize % 3000)),
        }
    }
    sample.truncate(bytes);
    sample
}

/// Bytes that no compressor makes shorter.
fn noise(bytes: usize) -> Vec<u8> {
    let mut seed = 1u64;
    let noise = std::iter::repeat_with(|| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 56) as u8
    });
    noise.take(bytes).collect()
}

const EVERY: [Compression; 4] = [Compression::Lz4, Compression::Zstd(1), Compression::Zstd(-7), Compression::None];

fn object(compression: Compression, identity: &[u8], plain: &[u8], frame_bytes: usize) -> Vec<u8> {
    let mut encoder = FrameEncoder::new(compression);
    let mut object = identity_frame(identity).to_vec();
    for frame in plain.chunks(frame_bytes) {
        object.extend_from_slice(&encoder.encode(frame));
    }
    object
}

/// Every frame of an object that arrives in pieces of the given sizes, used in turn.
fn split(object: &[u8], piece_bytes: &[usize], limit_bytes: usize) -> Result<Vec<RawFrame>, CodecError> {
    let mut splitter = FrameSplitter::new(limit_bytes);
    let mut frames = Vec::new();
    let mut object = Bytes::copy_from_slice(object);
    for bytes in piece_bytes.iter().cycle() {
        if object.is_empty() {
            break;
        }
        splitter.push(object.split_to((*bytes).min(object.len())));
        while let Some(frame) = splitter.next()? {
            frames.push(frame);
        }
    }
    splitter.finish()?;
    Ok(frames)
}

fn join(frames: &[RawFrame]) -> Result<Vec<u8>, CodecError> {
    let mut decoder = FrameDecoder::new();
    let mut plain = Vec::new();
    for frame in frames {
        if let RawFrame::Data(raw) = frame {
            decoder.decode(raw, &mut plain, FRAME_BYTES)?;
        }
    }
    Ok(plain)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn an_object_survives_being_written_and_read(
        identity in proptest::collection::vec(any::<u8>(), 0..300),
        plain_bytes in 0usize..700_000,
        frame_bytes in 1000usize..600_000,
        compression in prop::sample::select(&EVERY[..]),
        seed: u64,
    ) {
        let plain = sample(plain_bytes, seed);
        let object = object(compression, &identity, &plain, frame_bytes);
        let decoded = decode_object(&object, plain_bytes).unwrap();
        prop_assert_eq!(decoded.identity.as_deref(), Some(&identity[..]));
        prop_assert!(decoded.plain == plain, "the plain bytes came back different");
        prop_assert_eq!(read_identity(&object).unwrap(), Some(Bytes::from(identity)));
    }

    #[test]
    fn pieces_of_any_size_give_the_same_frames(
        plain_bytes in 0usize..100_000,
        frame_bytes in 1000usize..50_000,
        piece_bytes in proptest::collection::vec(1usize..40_000, 1..20),
        compression in prop::sample::select(&EVERY[..]),
        seed: u64,
    ) {
        let plain = sample(plain_bytes, seed);
        let object = object(compression, b"who am I", &plain, frame_bytes);
        let whole = split(&object, &[object.len()], FRAME_STORED_BYTES_MAX).unwrap();
        prop_assert_eq!(whole.first(), Some(&RawFrame::Identity(Bytes::from_static(b"who am I"))));
        prop_assert_eq!(whole.len(), 1 + plain.chunks(frame_bytes).len());
        let pieces = split(&object, &piece_bytes, FRAME_STORED_BYTES_MAX).unwrap();
        prop_assert!(pieces == whole, "the frames depend on how the object arrives");
        prop_assert!(join(&pieces).unwrap() == plain, "the frames do not hold the plain bytes");
    }

    #[test]
    fn what_was_there_before_does_not_matter_to_what_is_written_over_it(
        plain_bytes in 0usize..300_000,
        before in proptest::collection::vec(any::<u8>(), 0..400),
        longer in 0usize..400_000,
        start in 0usize..500,
        compression in prop::sample::select(&EVERY[..]),
        hashed: bool,
        seed: u64,
    ) {
        // Given memory of any length with anything in it, and a frame
        let plain = sample(plain_bytes, seed);
        let mut encoder = FrameEncoder::new(compression);
        let frame = if hashed { encoder.encode_hashed(&plain, |_| ()) } else { encoder.encode(&plain) };
        let mut out = before.clone();
        out.resize(before.len() + longer, 0xA5);
        let start = start.min(out.len());
        let kept = out[..start].to_vec();
        // When the frame is written over it from some place on, twice
        let mut decoder = FrameDecoder::new();
        for _ in 0..2 {
            let end = decoder.decode_over(&frame, &mut out, start, FRAME_BYTES).unwrap();
            // Then its bytes are there, and what lay in front of them as well.
            prop_assert!(out[start..end] == plain, "the plain bytes came back different");
            prop_assert!(out[..start] == kept, "what lay in front is gone");
        }
        // And what does not fit is refused.
        if plain_bytes > 0 {
            let refused = decoder.decode_over(&frame, &mut out, start, plain_bytes - 1);
            prop_assert!(matches!(refused, Err(CodecError::TooLarge { .. })), "{refused:?}");
        }
    }

    #[test]
    fn bytes_of_any_kind_never_panic(noise in proptest::collection::vec(any::<u8>(), 0..400), magic in 0usize..7) {
        let magics: [&[u8]; 7] = [
            b"", b"\x04\x22\x4D\x18", b"\x57\x2A\x4D\x18", b"\x04\x22\x4D\x18\x60\x40\x82",
            b"\x28\xB5\x2F\xFD", b"\x28\xB5\x2F\xFD\x20\xFF", b"\x28\xB5\x2F\xFD\x00\x58",
        ];
        let bytes = [magics[magic], &noise].concat();
        let _ = decode_object(&bytes, 1 << 16);
        let _ = read_identity(&bytes);
        let _ = split(&bytes, &[7, 1, 30], 1 << 16);
        let _ = FrameDecoder::new().decode(&bytes, &mut Vec::new(), 1 << 16);
    }

    #[test]
    fn noise_in_linked_blocks_never_panics(
        noise in proptest::collection::vec(any::<u8>(), 1..300),
        more in proptest::collection::vec(any::<u8>(), 1..300),
        plain in proptest::collection::vec(any::<u8>(), 1..300),
    ) {
        // FLG: version 1, linked, no checksums; BD: 64 KiB; its header checksum as `lz4 -BD --no-frame-crc` writes it.
        let mut bytes = b"\x04\x22\x4D\x18\x40\x40\xC0".to_vec();
        for (block, flag) in [(&plain, 1u32 << 31), (&noise, 0), (&more, 0)] {
            bytes.extend_from_slice(&(block.len() as u32 | flag).to_le_bytes());
            bytes.extend_from_slice(block);
        }
        bytes.extend_from_slice(&[0; 4]);
        let result = decode_object(&bytes, 1 << 20);
        prop_assert!(!matches!(result, Err(CodecError::Checksum(_))), "the blocks were not looked at");
    }
}

#[test]
fn one_flipped_byte_is_found_or_does_no_harm() {
    let plain = sample(5_000, 3);
    for compression in EVERY {
        let object = object(compression, b"{\"timeline\":1}", &plain, 2_000);
        let flips = [0x01, 0x80, 0xFF, 0x13];
        for (position, flip) in (0..object.len()).flat_map(|position| flips.map(|flip| (position, flip))) {
            let mut damaged = object.clone();
            damaged[position] ^= flip;
            if let Ok(decoded) = decode_object(&damaged, plain.len()) {
                assert!(decoded.plain == plain, "byte {position} ^ {flip:#x} gives other bytes without an error");
            }
            if let Ok(Ok(joined)) = split(&damaged, &[999], 1 << 20).map(|frames| join(&frames)) {
                assert!(joined == plain, "byte {position} ^ {flip:#x} gives other bytes in pieces");
            }
        }
    }
}

#[test]
fn a_cut_object_is_found_unless_it_is_cut_between_frames() {
    EVERY.into_iter().for_each(cut_everywhere);
}

fn cut_everywhere(compression: Compression) {
    let plain = sample(5_000, 5);
    let object = object(compression, b"identity", &plain, 2_000);
    // Given where the frames end,
    let frames = split(&object, &[object.len()], 1 << 20).unwrap();
    let mut ends = vec![];
    for frame in &frames {
        let bytes = match frame {
            RawFrame::Identity(identity) => identity_frame(identity).len(),
            RawFrame::Data(raw) => raw.len(),
        };
        ends.push(ends.last().unwrap_or(&0) + bytes);
    }
    for end in 0..object.len() {
        // when the object is cut, then only a cut at such an end goes unnoticed, and leaves whole frames.
        let cut = &object[..end];
        match decode_object(cut, plain.len()) {
            Ok(decoded) => {
                assert!(ends.contains(&end) && plain.starts_with(&decoded.plain), "a cut at {end} is not found")
            }
            Err(CodecError::Cut { needed_bytes }) => assert!(needed_bytes > 0),
            Err(error) => panic!("a cut at {end} is reported as: {error}"),
        }
        match split(cut, &[64], 1 << 20) {
            Ok(_) => assert!(end == 0 || ends.contains(&end), "a cut at {end} is not found in pieces"),
            Err(CodecError::Cut { needed_bytes }) => {
                let begin = ends.iter().rfind(|it| **it <= end).unwrap_or(&0);
                assert!(begin + needed_bytes > end && begin + needed_bytes <= object.len(), "at {end}: {needed_bytes}");
            }
            Err(error) => panic!("a cut at {end} is reported as: {error}"),
        }
    }
}

#[test]
fn a_cut_identity_says_how_much_to_read() {
    let object = object(Compression::Lz4, &[7; 500], b"plain", FRAME_BYTES);
    let mut have = 0;
    let mut reads = vec![];
    let identity = loop {
        match read_identity(&object[..have]) {
            Err(CodecError::Cut { needed_bytes }) => {
                assert!(needed_bytes > have);
                have = needed_bytes;
                reads.push(have);
            }
            other => break other.unwrap(),
        }
    };
    assert_eq!(identity.as_deref(), Some(&[7; 500][..]));
    assert_eq!(reads, [4, 8, 508], "an identity is read in as many steps as its header has fields");
    assert_eq!(read_identity(&FrameEncoder::new(Compression::Lz4).encode(b"x")).unwrap(), None);
}

#[test]
fn a_frame_in_one_piece_is_not_copied() {
    let frame = FrameEncoder::new(Compression::Lz4).encode(&sample(10_000, 1));
    let mut splitter = FrameSplitter::new(FRAME_STORED_BYTES_MAX);
    splitter.push(frame.clone());
    let Some(RawFrame::Data(found)) = splitter.next().unwrap() else { panic!("no frame was found") };
    assert_eq!(found.as_ptr(), frame.as_ptr());
}

#[test]
fn nothing_grows_beyond_the_limit() {
    // Given a megabyte of zeros that becomes a few kilobytes,
    let plain = vec![0; 1 << 20];
    let frame = FrameEncoder::new(Compression::Lz4).encode(&plain);
    assert!(frame.len() < 8_000, "{} bytes", frame.len());
    // when less is allowed, then no more is allocated than a buffer of that size grows to, with or without a content size in the header.
    let mut unsized_frame = b"\x04\x22\x4D\x18\x60\x50".to_vec();
    unsized_frame.push((twox_hash::XxHash32::oneshot(0, b"\x60\x50") >> 8) as u8);
    unsized_frame.extend_from_slice(&frame[15..frame.len() - 4]);
    // The descriptor of a Zstandard frame without content size and checksum, with a window of a mebibyte.
    let zstd = FrameEncoder::new(Compression::Zstd(1)).encode_hashed(&plain, |_| ());
    let mut unsized_zstd = b"\x28\xB5\x2F\xFD\x00\x50".to_vec();
    unsized_zstd.extend_from_slice(&zstd[zstd_header_bytes(&zstd)..]);
    for frame in [&frame[..], &unsized_frame, &zstd, &unsized_zstd] {
        let mut out = b"before".to_vec();
        let result = FrameDecoder::new().decode(frame, &mut out, plain.len() - 1);
        assert!(matches!(result, Err(CodecError::TooLarge { limit_bytes: 1_048_575 })), "{result:?}");
        assert_eq!(out, b"before");
        assert!(out.capacity() <= 2 * plain.len(), "{} bytes were allocated", out.capacity());
        FrameDecoder::new().decode(frame, &mut out, plain.len()).unwrap();
        assert_eq!(out.len(), 6 + plain.len());
    }
    // And the limit of an object is for all its frames together.
    for compression in EVERY {
        let object = object(compression, b"", &plain, 300_000);
        let read = decode_object(&object, 900_000);
        assert!(matches!(read, Err(CodecError::TooLarge { limit_bytes: 900_000 })), "{compression}: {read:?}");
    }
}

/// Length of the header of a Zstandard frame: RFC 8878, section 3.1.1.1.
fn zstd_header_bytes(frame: &[u8]) -> usize {
    let single_segment = frame[4] & 0x20 != 0;
    let size_bytes = [usize::from(single_segment), 2, 4, 8][usize::from(frame[4] >> 6)];
    4 + 1 + usize::from(!single_segment) + size_bytes
}

#[test]
fn a_frame_above_the_splitters_limit_is_refused_before_it_has_arrived() {
    let frame = FrameEncoder::new(Compression::Lz4).encode(&noise(300_000));
    let mut splitter = FrameSplitter::new(50_000);
    splitter.push(frame.slice(..20));
    assert!(matches!(splitter.next(), Err(CodecError::TooLarge { limit_bytes: 50_000 })));
    // An identity of four gigabytes is damage, whatever the limit.
    let mut splitter = FrameSplitter::new(usize::MAX);
    splitter.push(Bytes::from_static(b"\x57\x2A\x4D\x18\xFF\xFF\xFF\xFF"));
    assert!(matches!(splitter.next(), Err(CodecError::TooLarge { limit_bytes: IDENTITY_BYTES_MAX })));
}

#[test]
fn incompressible_frames_keep_within_their_bound() {
    let noise = noise(FRAME_BYTES);
    for compression in EVERY {
        let frame = FrameEncoder::new(compression).encode(&noise);
        assert!((FRAME_BYTES..=FRAME_STORED_BYTES_MAX).contains(&frame.len()), "{compression}: {} bytes", frame.len());
        assert!(decode_object(&frame, FRAME_BYTES).unwrap().plain == noise);
    }
}

#[test]
fn an_encoder_gives_the_same_frame_again() {
    // Parts of a base backup are compared by their stored bytes: what was encoded before must not matter.
    let plain = sample(600_000, 4);
    for compression in EVERY {
        let mut used = FrameEncoder::new(compression);
        used.encode(&sample(900_000, 5));
        used.encode_hashed(&sample(100_000, 6), |_| ());
        assert!(used.encode(&plain) == FrameEncoder::new(compression).encode(&plain), "{compression}");
    }
}

#[test]
fn foreign_skippable_frames_are_passed_over_and_other_formats_named() {
    let mut object = b"\x50\x2A\x4D\x18\x03\0\0\0abc".to_vec();
    assert_eq!(read_identity(&object).unwrap(), None);
    object.extend_from_slice(&FrameEncoder::new(Compression::Lz4).encode(b"plain"));
    assert_eq!(decode_object(&object, 10).unwrap(), Decoded { identity: None, plain: b"plain".to_vec() });
    assert_eq!(split(&object, &[3], 100).unwrap().len(), 1);

    let error = decode_object(b"\x02\x21\x4C\x18rest", 10).unwrap_err();
    assert!(matches!(error, CodecError::Legacy));
    let error = Error::from(error);
    assert_eq!(error.kind(), Kind::Damaged);
    assert_eq!(error.to_string(), "cannot decompress: this is the legacy LZ4 format, which has no checksums");
    assert!(matches!(decode_object(b"\x1F\x8B\x08\x00rest", 10), Err(CodecError::NotAFrame(0x0008_8B1F))));
    assert!(matches!(decode_object(b"", 10), Err(CodecError::Cut { needed_bytes: 4 })));
}

#[test]
fn suffixes_are_read_as_they_are_written() {
    for codec in Codec::ALL {
        assert_eq!(Codec::from_suffix(codec.suffix()), Some(codec));
    }
    assert_eq!(Codec::from_suffix("gz"), None);
}
