//! arm64 Images for tests, as small as possible.

/// Positions of fields in the header.
pub const TEXT_OFFSET: usize = 8;
pub const SIZE: usize = 16;
pub const FLAGS: usize = 24;
pub const MARK: usize = 0x38;
/// The position of the PE header's position.
pub const PE_OFFSET: usize = 0x3c;
/// The position of the PE header, and in it of the header of its only section.
const PE: usize = 0x40;
const SECTION: usize = PE + 24 + 0xa0;
/// The length of the section in the file.
pub const SECTION_SIZE: usize = SECTION + 16;

/// What the code reads: the number of words of the data, and the address and number of words of the initrd.
const PARAMETERS: usize = 0xfd0;
/// Where the data are. The code is before them.
pub const DATA: usize = 0x2000;

/// An arm64 Image. Each change keeps the rest as it is.
#[derive(Clone)]
pub struct ArmImage(pub Vec<u8>);

impl ArmImage {
    /// An Image that occupies `size` bytes of memory. The file has 4 KiB, and an EFI stub, so it is a PE file, too.
    pub fn new(size: u64) -> Self {
        let mut image = Self::without_stub(size);
        image.put(0, b"MZ\x40\xfa");
        image.put(PE_OFFSET, &(PE as u32).to_le_bytes());
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

    /// An Image with code and these data, whose length is a multiple of 4. It occupies `size` bytes of memory. The code looks for the
    /// initrd at this address, and reads this many bytes of it.
    pub fn with_code(data: &[u8], size: u64, initrd: (u64, u64)) -> Self {
        let mut image = Self::new(size);
        image.put(4, &0x1400_03ff_u32.to_le_bytes()); // a jump to the code
        image.put(PARAMETERS, &(data.len() as u64 / 4).to_le_bytes());
        image.put(PARAMETERS + 8, &initrd.0.to_le_bytes());
        image.put(PARAMETERS + 16, &(initrd.1 / 4).to_le_bytes());
        image.0.extend(CODE.iter().flat_map(|word| word.to_le_bytes()));
        image.0.resize(DATA, 0);
        image.0.extend(data);
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

/// Prints in hexadecimal the address at which the kernel is, the sums of the data and of the initrd as in
/// [`sum`](super::elf_kernel::sum), and the address and first word of the device tree, which `x0` contains, on the first serial port.
/// Then it waits for a byte from that port, and resets the VM. The serial port, a PL011, is at 0x9000000 (hw/arm/virt.c). `hvc` with this
/// number is a reset (PSCI).
///
/// ```text
/// code:   mov  x19, x0               sum:    mov  w2, #0
///         adr  x20, code - 0x1000    next:   cbz  x1, done
///         movz x21, #0x900, lsl #16          ldr  w3, [x0], #4
///         mov  w0, #0x301                    add  w2, w2, w3
///         str  w0, [x21, #0x30]              ror  w2, w2, #31
///         mov  w0, w20                       sub  x1, x1, #1
///         bl   hex                           b    next
///         add  x0, x20, #0x2000      done:   mov  w0, w2
///         ldr  x1, [x20, #0xfd0]             ret
///         bl   sum                   hex:    mov  x29, x30
///         bl   hex                           mov  w4, w0
///         ldr  x0, [x20, #0xfd8]             mov  w5, #8
///         ldr  x1, [x20, #0xfe0]     digit:  ror  w4, w4, #28
///         bl   sum                           and  w0, w4, #15
///         bl   hex                           add  w0, w0, #0x30
///         mov  w0, w19                       cmp  w0, #0x3a
///         bl   hex                           b.lo letter
///         ldr  w0, [x19]                     add  w0, w0, #0x27
///         bl   hex                   letter: bl   put
///         mov  w0, #10                       sub  w5, w5, #1
///         bl   put                           cbnz w5, digit
/// wait:   ldr  w6, [x21, #0x18]              mov  x30, x29
///         tbnz w6, #4, wait                  mov  w0, #0x20
///         movz w0, #0x8400, lsl #16  put:    ldr  w6, [x21, #0x18]
///         movk w0, #9                        tbnz w6, #5, put
///         hvc  #0                            strb w0, [x21]
/// stop:   wfi                                ret
///         b    stop
/// ```
#[rustfmt::skip]
const CODE: [u32; 55] = [
    0xaa00_03f3, 0x10ff_7ff4, 0xd2a1_2015, 0x5280_6020, 0xb900_32a0, 0x2a14_03e0, 0x9400_001f, 0x9140_0a80,
    0xf947_ea81, 0x9400_0013, 0x9400_001b, 0xf947_ee80, 0xf947_f281, 0x9400_000f, 0x9400_0017, 0x2a13_03e0,
    0x9400_0015, 0xb940_0260, 0x9400_0013, 0x5280_0140, 0x9400_001f, 0xb940_1aa6, 0x3727_ffe6, 0x52b0_8000,
    0x7280_0120, 0xd400_0002, 0xd503_207f, 0x17ff_ffff, 0x5280_0002, 0xb400_00c1, 0xb840_4403, 0x0b03_0042,
    0x1382_7c42, 0xd100_0421, 0x17ff_fffb, 0x2a02_03e0, 0xd65f_03c0, 0xaa1e_03fd, 0x2a00_03e4, 0x5280_0105,
    0x1384_7084, 0x1200_0c80, 0x1100_c000, 0x7100_e81f, 0x5400_0043, 0x1100_9c00, 0x9400_0005, 0x5100_04a5,
    0x35ff_ff05, 0xaa1d_03fe, 0x5280_0400, 0xb940_1aa6, 0x372f_ffe6, 0x3900_02a0, 0xd65f_03c0,
];
