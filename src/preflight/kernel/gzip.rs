//! The beginning of a gzip file, unpacked (RFC 1951 and RFC 1952).
//!
//! The first bytes of a packed kernel say for which architecture it is and how much memory it needs. A crate that unpacks whole files
//! would be a dependency of every program that uses this one. The beginning needs no window, no checksum and no speed.

/// Bits of the flags in a gzip header: parts of the header that follow its first 10 bytes.
const HEADER_CHECKSUM: u8 = 1 << 1;
const EXTRA_FIELD: u8 = 1 << 2;
const NAME: u8 = 1 << 3;
const COMMENT: u8 = 1 << 4;
const RESERVED: u8 = 0xe0;
/// The only method of compression.
const DEFLATE: u8 = 8;

/// The longest code, in bits.
const MAX_BITS: usize = 15;
/// The symbol that ends a block. Larger ones are lengths.
const END: usize = 256;
/// For each symbol after [`END`]: the shortest length, and how many bits to add to it follow.
#[rustfmt::skip]
const LENGTHS: [(usize, u32); 29] = [
    (3, 0), (4, 0), (5, 0), (6, 0), (7, 0), (8, 0), (9, 0), (10, 0), (11, 1), (13, 1), (15, 1), (17, 1), (19, 2), (23, 2), (27, 2),
    (31, 2), (35, 3), (43, 3), (51, 3), (59, 3), (67, 4), (83, 4), (99, 4), (115, 4), (131, 5), (163, 5), (195, 5), (227, 5), (258, 0),
];
/// The same for distances.
#[rustfmt::skip]
const DISTANCES: [(usize, u32); 30] = [
    (1, 0), (2, 0), (3, 0), (4, 0), (5, 1), (7, 1), (9, 2), (13, 2), (17, 3), (25, 3), (33, 4), (49, 4), (65, 5), (97, 5), (129, 6),
    (193, 6), (257, 7), (385, 7), (513, 8), (769, 8), (1025, 9), (1537, 9), (2049, 10), (3073, 10), (4097, 11), (6145, 11),
    (8193, 12), (12289, 12), (16385, 13), (24577, 13),
];
/// The order in which a block names the lengths of the codes for code lengths.
const CODE_LENGTH_ORDER: [usize; 19] = [16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15];

/// Unpacks at most `wanted` bytes of a gzip file that begins with `packed`: fewer if the file or `packed` ends before. `None` if it is
/// no gzip file.
pub(super) fn unpack(packed: &[u8], wanted: usize) -> Option<Vec<u8>> {
    let mut output = Output { bytes: Vec::new(), wanted };
    // `None` if the output is complete, and at the end of `packed`.
    let _ = inflate(&mut Bits { bytes: after_header(packed)?, buffer: 0, count: 0 }, &mut output);
    Some(output.bytes)
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

struct Output {
    bytes: Vec<u8>,
    wanted: usize,
}

impl Output {
    /// `None` if there are as many bytes as wanted.
    fn push(&mut self, byte: u8) -> Option<()> {
        self.bytes.push(byte);
        (self.bytes.len() < self.wanted).then_some(())
    }
}

/// Reads bits, from the lowest one of each byte on.
struct Bits<'a> {
    bytes: &'a [u8],
    /// Bits that were taken from `bytes` and not read yet, and their number.
    buffer: u32,
    count: u32,
}

impl Bits<'_> {
    fn read(&mut self, count: u32) -> Option<usize> {
        while self.count < count {
            let (&byte, rest) = self.bytes.split_first()?;
            self.buffer |= u32::from(byte) << self.count;
            self.count += 8;
            self.bytes = rest;
        }
        let value = self.buffer & ((1 << count) - 1);
        self.buffer >>= count;
        self.count -= count;
        Some(value as usize)
    }

    /// Reads a base and the bits to add to it.
    fn read_more(&mut self, (base, bits): (usize, u32)) -> Option<usize> {
        Some(base + self.read(bits)?)
    }
}

/// A canonical Huffman code.
struct Code {
    /// How many symbols have a code of each length.
    counts: [usize; MAX_BITS + 1],
    /// The symbols, by the length of their codes.
    symbols: Vec<usize>,
}

impl Code {
    /// The code in which each symbol has a code of this length; 0 for symbols that do not occur.
    fn new(lengths: &[usize]) -> Self {
        let mut counts = [0; MAX_BITS + 1];
        lengths.iter().for_each(|&length| counts[length] += 1);
        let mut symbols: Vec<usize> = (0..lengths.len()).filter(|&symbol| lengths[symbol] > 0).collect();
        symbols.sort_by_key(|&symbol| lengths[symbol]);
        Self { counts, symbols }
    }

    fn read(&self, bits: &mut Bits<'_>) -> Option<usize> {
        // The codes of one length are successive numbers, and so are their symbols.
        let (mut code, mut first, mut index) = (0, 0, 0);
        for &count in &self.counts[1..] {
            code |= bits.read(1)?;
            if let Some(offset) = code.checked_sub(first).filter(|&offset| offset < count) {
                return self.symbols.get(index + offset).copied();
            }
            index += count;
            first = (first + count) << 1;
            code <<= 1;
        }
        None
    }
}

fn inflate(bits: &mut Bits<'_>, output: &mut Output) -> Option<()> {
    loop {
        let is_last = bits.read(1)? == 1;
        match bits.read(2)? {
            0 => copy_stored(bits, output)?,
            1 => {
                let lengths: Vec<usize> = [(8, 144), (9, 112), (7, 24), (8, 8)]
                    .into_iter()
                    .flat_map(|(length, count)| std::iter::repeat_n(length, count))
                    .collect();
                unpack_block(bits, output, &Code::new(&lengths), &Code::new(&[5; 30]))?;
            }
            2 => {
                let (literals, distances) = read_codes(bits)?;
                unpack_block(bits, output, &literals, &distances)?;
            }
            _ => return None,
        }
        if is_last {
            return Some(());
        }
    }
}

/// A block that is not packed. It begins at a whole byte.
fn copy_stored(bits: &mut Bits<'_>, output: &mut Output) -> Option<()> {
    bits.read(bits.count % 8)?;
    let (length, check) = (bits.read(16)?, bits.read(16)?);
    if length ^ check != 0xffff {
        return None;
    }
    (0..length).try_for_each(|_| output.push(bits.read(8)? as u8))
}

/// Reads the codes for literals and lengths and for distances, which are packed themselves.
fn read_codes(bits: &mut Bits<'_>) -> Option<(Code, Code)> {
    let (literals, distances) = (bits.read_more((257, 5))?, bits.read_more((1, 5))?);
    let mut code_lengths = [0; CODE_LENGTH_ORDER.len()];
    for &symbol in CODE_LENGTH_ORDER.iter().take(bits.read_more((4, 4))?) {
        code_lengths[symbol] = bits.read(3)?;
    }
    let code = Code::new(&code_lengths);
    let mut lengths = Vec::new();
    while lengths.len() < literals + distances {
        let (length, times) = match code.read(bits)? {
            16 => (*lengths.last()?, bits.read_more((3, 2))?),
            17 => (0, bits.read_more((3, 3))?),
            18 => (0, bits.read_more((11, 7))?),
            length => (length, 1),
        };
        lengths.extend(std::iter::repeat_n(length, times));
    }
    if lengths.len() > literals + distances {
        return None;
    }
    let (literals, distances) = lengths.split_at(literals);
    Some((Code::new(literals), Code::new(distances)))
}

fn unpack_block(bits: &mut Bits<'_>, output: &mut Output, literals: &Code, distances: &Code) -> Option<()> {
    loop {
        match literals.read(bits)? {
            END => return Some(()),
            symbol if symbol < END => output.push(symbol as u8)?,
            symbol => {
                let length = bits.read_more(*LENGTHS.get(symbol - END - 1)?)?;
                let distance = distances.read(bits)?;
                let distance = bits.read_more(*DISTANCES.get(distance)?)?;
                for _ in 0..length {
                    let from = output.bytes.len().checked_sub(distance)?;
                    output.push(output.bytes[from])?;
                }
            }
        }
    }
}
