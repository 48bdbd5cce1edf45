//! arm64 Images for tests, as small as possible.

/// Positions of fields in the header.
pub const TEXT_OFFSET: usize = 8;
pub const SIZE: usize = 16;
pub const FLAGS: usize = 24;
pub const MARK: usize = 0x38;
/// The position of the PE header, and in it of the header of its only section.
const PE: usize = 0x40;
const SECTION: usize = PE + 24 + 0xa0;
/// The length of the section in the file.
pub const SECTION_SIZE: usize = SECTION + 16;

/// An arm64 Image. Each change keeps the rest as it is.
#[derive(Clone)]
pub struct ArmImage(pub Vec<u8>);

impl ArmImage {
    /// An Image that occupies `size` bytes of memory. The file has 4 KiB, and an EFI stub, so it is a PE file, too.
    pub fn new(size: u64) -> Self {
        let mut image = Self::without_stub(size);
        image.put(0, b"MZ\x40\xfa");
        image.put(0x3c, &(PE as u32).to_le_bytes());
        image.put(PE, b"PE\0\0\x64\xaa\x01\0");
        image.put(PE + 20, &[0xa0]);
        image.put(SECTION, b".text");
        image.put(SECTION_SIZE, &0xc00_u32.to_le_bytes());
        image.put(SECTION + 20, &0x400_u32.to_le_bytes());
        image
    }

    /// An Image without an EFI stub, which is 4 KiB long and occupies `size` bytes of memory.
    pub fn without_stub(size: u64) -> Self {
        let mut image = Self(vec![0; 4096]);
        image.put(0, &0x1400_0400_u32.to_le_bytes()); // a jump
        image.put(SIZE, &size.to_le_bytes());
        image.put(FLAGS, &[0b1010]); // little-endian, pages of 4 KiB, anywhere in memory
        image.put(MARK, b"ARM\x64");
        image
    }

    pub fn put(&mut self, at: usize, bytes: &[u8]) {
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
    }

    /// Returns the Image with other bytes at this position.
    pub fn with(mut self, at: usize, bytes: &[u8]) -> Self {
        self.put(at, bytes);
        self
    }
}
