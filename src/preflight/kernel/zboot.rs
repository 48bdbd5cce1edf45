//! EFI zboot images: EFI programs that contain a compressed kernel (drivers/firmware/efi/libstub/zboot-header.S of Linux).
//!
//! QEMU unpacks them from version 9.0 on if they are compressed with gzip, and from 10.2 on if they are compressed with zstd. Earlier
//! versions load them without unpacking, and the guest prints nothing. The crate knows QEMU's version only after a run of QEMU, which would
//! take as long as a start. So the crate refuses these files as compressed kernels.

use crate::preflight::image_header::unpacking;
use crate::preflight::little_endian;

/// The name of the format in messages.
const FORMAT: &str = "EFI zboot";
/// The names of compression formats in the header, each with the program that unpacks it.
const PROGRAMS: [(&str, &str); 6] =
    [("gzip", "gzip"), ("xz", "xz"), ("zstd", "zstd"), ("lz4", "lz4"), ("lzma", "lzma"), ("lzo", "lzop")];

pub(super) fn has_mark(head: &[u8]) -> bool {
    head.starts_with(b"MZ") && head.get(4..8) == Some(b"zimg")
}

/// The name of the format of a zboot image that begins with `head`, and the command that unpacks its kernel. `None` if the file is no
/// zboot image, or the compression is unknown.
pub(super) fn find(head: &[u8]) -> Option<(&'static str, String)> {
    let name = head.get(24..56).filter(|_| has_mark(head))?.split(|&byte| byte == 0).next()?;
    let (_, program) = PROGRAMS.iter().find(|(format, _)| format.as_bytes() == name)?;
    let [start, length] = [8, 12].map(|at| little_endian(head, at, 4));
    Some((FORMAT, format!("tail -c +{} | head -c {length} | {}", start + 1, unpacking(program))))
}
