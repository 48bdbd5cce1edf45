//! ELF kernels for tests, as small as possible.

/// Where the code of the kernel is, and where it starts.
pub const CODE: u64 = 0x10_0000;
/// Positions of fields in the file header and in the headers of segments.
pub const CLASS: usize = 4;
pub const BYTE_ORDER: usize = 5;
pub const KIND: usize = 16;
pub const MACHINE: usize = 18;
pub const FLAGS: usize = 48;
pub const SEGMENT_SIZE: usize = 54;
pub const SEGMENT_COUNT: usize = 56;
pub const OFFSET: usize = 8;
pub const PHYSICAL: usize = 24;
pub const SIZE: usize = 32;
pub const MEMORY_SIZE: usize = 40;
pub const ALIGNMENT: usize = 48;
/// Positions in the note's segment.
pub const NOTE_KIND: usize = 8;
pub const NOTE_OWNER: usize = 12;
pub const NOTE_ENTRY: usize = 16;

/// An ELF kernel for x86-64 with three segments: code, a note with its entry, and data. Each is at a page of the file.
pub struct ElfKernel(pub Vec<u8>);

impl ElfKernel {
    /// `data` is loaded so that it ends at this address.
    pub fn new(data: &[u8], end: u64) -> Self {
        let mut file = b"\x7fELF\x02\x01\x01".to_vec();
        file.resize(0x3000, 0);
        file.extend(data);
        let mut kernel = Self(file);
        kernel.put(KIND, &2_u16.to_le_bytes()); // executable
        kernel.put(MACHINE, &62_u16.to_le_bytes());
        kernel.put(24, &CODE.to_le_bytes());
        kernel.put(32, &64_u64.to_le_bytes()); // the position of the segments' headers
        kernel.put(SEGMENT_SIZE, &56_u16.to_le_bytes());
        kernel.put(SEGMENT_COUNT, &3_u16.to_le_bytes());
        let length = data.len() as u64;
        let segments = [
            (1_u32, 0x1000_u64, CODE, 0x1000, 0x1000),
            (4, 0x2000, 0, 24, 4),
            (1, 0x3000, end - length, length, 0x1000),
        ];
        for (index, (kind, offset, address, size, alignment)) in segments.into_iter().enumerate() {
            kernel.put(segment(index), &kind.to_le_bytes());
            for (field, value) in
                [(OFFSET, offset), (PHYSICAL, address), (SIZE, size), (MEMORY_SIZE, size), (ALIGNMENT, alignment)]
            {
                kernel.put(segment(index) + field, &value.to_le_bytes());
            }
        }
        kernel.put(0x1000, &CODE_BYTES);
        // Where the code finds the data, and their number in words of 4 bytes.
        kernel.put(0x1ff8, &((end - length) as u32).to_le_bytes());
        kernel.put(0x1ffc, &((length / 4) as u32).to_le_bytes());
        kernel.put(0x2000, &[4, 0, 0, 0, 8, 0, 0, 0, 18, 0, 0, 0]);
        kernel.put(0x2000 + NOTE_OWNER, b"Xen\0");
        kernel.put(0x2000 + NOTE_ENTRY, &CODE.to_le_bytes());
        kernel
    }

    pub fn put(&mut self, at: usize, bytes: &[u8]) {
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
    }

    /// Returns the kernel with other bytes at this position.
    pub fn with(mut self, at: usize, bytes: &[u8]) -> Self {
        self.put(at, bytes);
        self
    }
}

/// The position of the header of a segment: 0 is the code, 1 the note, 2 the data.
pub fn segment(index: usize) -> usize {
    64 + 56 * index
}

/// What the code computes of the data and of the initrd: for each word of 4 bytes, it adds the word and rotates the sum.
pub fn sum(bytes: &[u8]) -> u32 {
    let words = bytes.chunks_exact(4).map(|word| u32::from_le_bytes(word.try_into().unwrap()));
    words.fold(0_u32, |sum, word| sum.wrapping_add(word).rotate_left(1))
}

/// Prints in hexadecimal the sum of the data, the address and the length of the initrd, and its sum on the first serial port,
/// and resets the VM. The protocol passes the address of a structure in `ebx`, with the address of a list of modules at 16.
///
/// ```text
///         mov  $0x101000, %esp            sum:    xor  %eax, %eax
///         mov  0x100ff8, %esi             next:   add  (%esi), %eax
///         mov  0x100ffc, %ecx                     rol  $1, %eax
///         call sum                                add  $4, %esi
///         call hex                                loop next
///         mov  16(%ebx), %edi                     ret
///         mov  (%edi), %eax               hex:    mov  %eax, %edx
///         call hex                                mov  $8, %ecx
///         mov  8(%edi), %eax              digit:  rol  $4, %edx
///         call hex                                mov  %dl, %al
///         mov  (%edi), %esi                       and  $15, %al
///         mov  8(%edi), %ecx                      add  $0x30, %al
///         shr  $2, %ecx                           cmp  $0x3a, %al
///         call sum                                jb   letter
///         call hex                                add  $0x27, %al
///         mov  $10, %al                   letter: call put
///         call put                                loop digit
///         mov  $0xfe, %al                         mov  $0x20, %al
///         out  %al, $0x64                 put:    push %edx
/// stop:   hlt                                     mov  %al, %ah
///         jmp  stop                               mov  $0x3fd, %dx
///                                         wait:   in   %dx, %al
///                                                 test $0x20, %al
///                                                 jz   wait
///                                                 mov  %ah, %al
///                                                 mov  $0x3f8, %dx
///                                                 out  %al, %dx
///                                                 pop  %edx
///                                                 ret
/// ```
#[rustfmt::skip]
const CODE_BYTES: [u8; 141] = [
    0xbc, 0x00, 0x10, 0x10, 0x00, 0x8b, 0x35, 0xf8, 0x0f, 0x10, 0x00, 0x8b, 0x0d, 0xfc, 0x0f, 0x10, 0x00, 0xe8, 0x37, 0x00,
    0x00, 0x00, 0xe8, 0x3e, 0x00, 0x00, 0x00, 0x8b, 0x7b, 0x10, 0x8b, 0x07, 0xe8, 0x34, 0x00, 0x00, 0x00, 0x8b, 0x47, 0x08,
    0xe8, 0x2c, 0x00, 0x00, 0x00, 0x8b, 0x37, 0x8b, 0x4f, 0x08, 0xc1, 0xe9, 0x02, 0xe8, 0x13, 0x00, 0x00, 0x00, 0xe8, 0x1a,
    0x00, 0x00, 0x00, 0xb0, 0x0a, 0xe8, 0x32, 0x00, 0x00, 0x00, 0xb0, 0xfe, 0xe6, 0x64, 0xf4, 0xeb, 0xfd, 0x31, 0xc0, 0x03,
    0x06, 0xd1, 0xc0, 0x83, 0xc6, 0x04, 0xe2, 0xf7, 0xc3, 0x89, 0xc2, 0xb9, 0x08, 0x00, 0x00, 0x00, 0xc1, 0xc2, 0x04, 0x88,
    0xd0, 0x24, 0x0f, 0x04, 0x30, 0x3c, 0x3a, 0x72, 0x02, 0x04, 0x27, 0xe8, 0x04, 0x00, 0x00, 0x00, 0xe2, 0xea, 0xb0, 0x20,
    0x52, 0x88, 0xc4, 0x66, 0xba, 0xfd, 0x03, 0xec, 0xa8, 0x20, 0x74, 0xfb, 0x88, 0xe0, 0x66, 0xba, 0xf8, 0x03, 0xee, 0x5a,
    0xc3,
];
