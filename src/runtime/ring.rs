//! The log of a console: a growing file (QEMU), or a ring that is overwritten (hyperkit).
//!
//! hyperkit's ring has 65536 bytes, and does not record the position of the next write. While the ring is not full, NULs mark
//! its end. After that, the times at the start of the kernel's lines show the position: they go back where the oldest line
//! follows the newest. Without such lines, the start of the file counts as the oldest.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::sys::file::open_regular;

/// The limit on how much of an existing growing file is read, in bytes.
const MAX_KEPT_BYTES: u64 = 1024 * 1024;
/// The size of hyperkit's ring, in bytes.
const RING_BYTES: u64 = 65536;

/// A console log and how far it was read.
#[derive(Debug)]
pub(crate) struct ConsoleLog {
    file: File,
    ring: Option<Ring>,
    position: u64,
}

/// The content of hyperkit's ring at the last read.
#[derive(Debug, Default)]
struct Ring {
    before: Vec<u8>,
    /// Whether the position of the next write is only a guess.
    is_guess: bool,
}

impl ConsoleLog {
    pub fn open(path: &Path, is_ring: bool) -> io::Result<Self> {
        let file = open_regular(path)?;
        let length = file.metadata()?.len();
        let position = if is_ring { 0 } else { length.saturating_sub(MAX_KEPT_BYTES) };
        Ok(Self { file, ring: is_ring.then(Ring::default), position })
    }

    /// What was written since the last call; at the first call, what the file holds.
    pub fn read_new(&mut self) -> io::Result<Vec<u8>> {
        let Some(ring) = &mut self.ring else {
            let mut new = vec![0; MAX_KEPT_BYTES as usize];
            let length = self.file.read_at(&mut new, self.position)?;
            new.truncate(length);
            self.position += length as u64;
            return Ok(new);
        };
        let mut now = read_whole(&self.file)?;
        let new = if ring.before.is_empty() {
            let found = find_oldest(&now);
            ring.is_guess = found.is_none();
            let begin = found.unwrap_or(0);
            let mut all = [&now[begin..], &now[..begin]].concat();
            let end = all.iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1);
            all.truncate(end);
            self.position = (begin + end) as u64 % RING_BYTES;
            all
        } else {
            let is_new: Vec<_> = now.iter().zip(&ring.before).map(|(now, before)| now != before).collect();
            if ring.is_guess {
                if let Some(first) = first_changed((0..is_new.len()).filter(|&at| is_new[at]).collect()) {
                    (self.position, ring.is_guess) = (first as u64, false);
                }
            }
            // Everything from the last position to the last changed byte was written. A byte that was overwritten by the same
            // value is included, since changed bytes follow it.
            let begin = self.position as usize;
            let from_here = |offset: usize| (begin + offset) % is_new.len();
            let changed = (0..is_new.len()).rposition(|offset| is_new[from_here(offset)]).map_or(0, |last| last + 1);
            // The ring may have been read during a write. The second read sees that write complete.
            let complete = if changed > 0 { read_whole(&self.file)? } else { Vec::new() };
            (0..changed).map(from_here).for_each(|at| now[at] = complete[at]);
            let new = (0..changed).map(|offset| now[from_here(offset)]).collect();
            self.position = (self.position + changed as u64) % RING_BYTES;
            new
        };
        ring.before = now;
        Ok(new)
    }
}

/// The content of a ring.
fn read_whole(file: &File) -> io::Result<Vec<u8>> {
    let mut ring = vec![0; RING_BYTES as usize];
    let mut length = 0;
    while let read @ 1.. = file.read_at(&mut ring[length..], length as u64)? {
        length += read;
    }
    Ok(ring)
}

/// Which of the changed bytes of a ring, at these positions, was written first: the one after the longest stretch
/// without changes.
fn first_changed(positions: Vec<usize>) -> Option<usize> {
    let last = positions.last()?;
    let stretches = [last].into_iter().chain(&positions).zip(&positions).map(|(before, &at)| {
        let length = (at + RING_BYTES as usize - before - 1) % RING_BYTES as usize;
        (length, at)
    });
    stretches.max().map(|(_, at)| at)
}

/// The position of the oldest byte of a ring: 0 if it was never full, `None` if nothing shows it.
fn find_oldest(ring: &[u8]) -> Option<usize> {
    if ring.last() == Some(&0) {
        return Some(0);
    }
    let (mut begin, mut newest, mut found) = (0, None::<u64>, None);
    // The latest possible end of the newest line: before the last line without a time, which may be a rest of the oldest
    // one. Old text after the newest line is better than the newest line before everything else.
    let mut end = 0;
    for line in ring.split_inclusive(|&byte| byte == b'\n') {
        let time = kernel_time(line);
        if let (Some(newest), Some(time)) = (newest, time) {
            // Clocks of processors may differ a little. The start is where the time goes back the furthest.
            found = found.max(newest.checked_sub(time).filter(|&back| back > 0).map(|back| (back, end)));
        }
        newest = time.or(newest);
        end = if time.is_some() { begin + line.len() } else { begin };
        begin += line.len();
    }
    found.map(|(_, end)| end)
}

/// The time in microseconds at the start of a line of Linux: `[   12.345678] `.
fn kernel_time(line: &[u8]) -> Option<u64> {
    let end = line.iter().take(32).position(|&byte| byte == b']')?;
    let time = std::str::from_utf8(line.strip_prefix(b"[")?.get(..end.checked_sub(1)?)?).ok()?;
    let (seconds, micros) = time.trim_start().split_once('.')?;
    if micros.len() != 6 {
        return None;
    }
    seconds.parse::<u64>().ok()?.checked_mul(1_000_000)?.checked_add(micros.parse().ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_line_is_where_kernel_time_goes_back_the_furthest() {
        let lines =
            |times: &[&str]| times.iter().map(|time| format!("[{time:>12}] text\n")).collect::<Vec<_>>().concat();
        let (new, old) = (lines(&["3.000000", "3.000002", "3.000001"]), lines(&["1.000000", "2.000000"]));
        assert_eq!(find_oldest((new.clone() + &old).as_bytes()), Some(new.len()));
        assert_eq!(find_oldest(old.as_bytes()), None, "the ring is just full, or has just wrapped");
        assert_eq!(find_oldest(b"no times\nat all\n"), None);
        assert_eq!(find_oldest(b"not full\n\0"), Some(0));
    }

    #[test]
    fn changed_bytes_start_after_the_longest_unchanged_stretch() {
        let end = RING_BYTES as usize - 1;
        assert_eq!(first_changed(vec![]), None);
        assert_eq!(first_changed(vec![7]), Some(7));
        assert_eq!(first_changed(vec![7, 9, 30]), Some(7));
        assert_eq!(first_changed(vec![0, 1, end - 5, end]), Some(end - 5), "around the end");
    }
}
