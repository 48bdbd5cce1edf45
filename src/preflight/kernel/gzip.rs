//! The beginning of a gzip file, unpacked (RFC 1952).

use miniz_oxide::inflate::core::inflate_flags::TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF;
use miniz_oxide::inflate::core::{DecompressorOxide, decompress};

/// Bits of the flags in a gzip header: parts of the header that follow its first 10 bytes.
const HEADER_CHECKSUM: u8 = 1 << 1;
const EXTRA_FIELD: u8 = 1 << 2;
const NAME: u8 = 1 << 3;
const COMMENT: u8 = 1 << 4;
const RESERVED: u8 = 0xe0;
/// The only method of compression.
const DEFLATE: u8 = 8;

/// Unpacks at most `wanted` bytes of a gzip file that begins with `packed`: fewer if the file or `packed` ends before. `None` if it is
/// no gzip file.
pub(super) fn unpack(packed: &[u8], wanted: usize) -> Option<Vec<u8>> {
    let mut unpacked = vec![0; wanted];
    let flags = TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF;
    let (_, _, length) = decompress(&mut DecompressorOxide::new(), after_header(packed)?, &mut unpacked, 0, flags);
    unpacked.truncate(length);
    Some(unpacked)
}

fn after_header(packed: &[u8]) -> Option<&[u8]> {
    let (header, mut rest) = packed.split_at_checked(10)?;
    let flags = header[3];
    if !header.starts_with(&[0x1f, 0x8b, DEFLATE]) || flags & RESERVED != 0 {
        return None;
    }
    if flags & EXTRA_FIELD != 0 {
        let (length, after) = rest.split_first_chunk()?;
        rest = after.get(u16::from_le_bytes(*length).into()..)?;
    }
    for text in [NAME, COMMENT] {
        if flags & text != 0 {
            let end = rest.iter().position(|&byte| byte == 0)?;
            rest = &rest[end + 1..];
        }
    }
    rest.get(if flags & HEADER_CHECKSUM != 0 { 2 } else { 0 }..)
}
