//! The log of a console as a file: one that grows, or hyperkit's ring.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::engine::Engine;

/// Of a growing file, the most that is read of what was there before, in bytes.
const KEPT: u64 = 1024 * 1024;

/// The size of hyperkit's ring, in bytes.
const RING: u64 = 65536;

/// A log and how far it was read.
#[derive(Debug)]
pub(crate) struct Log {
    file: File,
    ring: Option<Ring>,
    at: u64,
}

/// What was in hyperkit's ring the last time.
#[derive(Debug, Default)]
struct Ring {
    before: Vec<u8>,
    /// Whether where it is written next is only a guess.
    is_guess: bool,
}

impl Log {
    pub(crate) fn open(path: &Path, engine: Engine) -> io::Result<Self> {
        let file = File::open(path)?;
        let length = file.metadata()?.len();
        let ring = (engine == Engine::HyperKit).then(Ring::default);
        Ok(Self { at: if ring.is_some() { 0 } else { length.saturating_sub(KEPT) }, file, ring })
    }

    /// What has come since the last time; at first, what is kept.
    pub(crate) fn more(&mut self) -> io::Result<Vec<u8>> {
        let Some(ring) = &mut self.ring else {
            let mut more = vec![0; KEPT as usize];
            let length = self.file.read_at(&mut more, self.at)?;
            more.truncate(length);
            self.at += length as u64;
            return Ok(more);
        };
        let mut now = whole(&self.file)?;
        let more = if ring.before.is_empty() {
            let found = oldest(&now);
            ring.is_guess = found.is_none();
            let begin = found.unwrap_or(0);
            let mut all = [&now[begin..], &now[..begin]].concat();
            let end = all.iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1);
            all.truncate(end);
            self.at = (begin + end) as u64 % RING;
            all
        } else {
            let is_new: Vec<_> = now.iter().zip(&ring.before).map(|(now, before)| now != before).collect();
            if ring.is_guess {
                if let Some(first) = first_of_new((0..is_new.len()).filter(|&at| is_new[at]).collect()) {
                    (self.at, ring.is_guess) = (first as u64, false);
                }
            }
            // Written from where it was the last time up to the last byte that is another: one that is the same by chance
            // comes with those behind it.
            let begin = self.at as usize;
            let from_here = |offset: usize| (begin + offset) % is_new.len();
            let changed = (0..is_new.len()).rposition(|offset| is_new[from_here(offset)]).map_or(0, |last| last + 1);
            // What was written while we read may have been read in part. Up to there all is written now.
            let complete = if changed > 0 { whole(&self.file)? } else { Vec::new() };
            (0..changed).map(from_here).for_each(|at| now[at] = complete[at]);
            let more = (0..changed).map(|offset| now[from_here(offset)]).collect();
            self.at = (self.at + changed as u64) % RING;
            more
        };
        ring.before = now;
        Ok(more)
    }
}

/// All of a ring.
fn whole(file: &File) -> io::Result<Vec<u8>> {
    let mut ring = vec![0; RING as usize];
    let mut length = 0;
    while let read @ 1.. = file.read_at(&mut ring[length..], length as u64)? {
        length += read;
    }
    Ok(ring)
}

/// Which of the bytes of a ring that are new, at these places, was written first: the one behind the longest way round
/// without any.
fn first_of_new(places: Vec<usize>) -> Option<usize> {
    let last = places.last()?;
    let ways = [last].into_iter().chain(&places).zip(&places).map(|(before, &at)| {
        let way = (at + RING as usize - before - 1) % RING as usize;
        (way, at)
    });
    ways.max().map(|(_, at)| at)
}

/// Where in a ring the oldest is: 0 if it was not filled; `None` if nothing tells.
fn oldest(ring: &[u8]) -> Option<usize> {
    if ring.last() == Some(&0) {
        return Some(0);
    }
    let (mut begin, mut newest, mut found) = (0, None::<u64>, None);
    // Where the newest may have ended, at the latest: before the last line without a time, of which something is left of
    // the oldest. Rather something old behind the newest than the newest before all.
    let mut end = 0;
    for line in ring.split_inclusive(|&byte| byte == b'\n') {
        let time = kernel_time(line);
        if let (Some(newest), Some(time)) = (newest, time) {
            // Processors may differ a little; the beginning is where the time goes back the furthest.
            found = found.max(newest.checked_sub(time).filter(|&back| back > 0).map(|back| (back, end)));
        }
        newest = time.or(newest);
        end = if time.is_some() { begin + line.len() } else { begin };
        begin += line.len();
    }
    found.map(|(_, end)| end)
}

/// The time in microseconds at the beginning of a line of Linux: `[   12.345678] `.
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
    fn the_oldest_is_where_the_time_goes_back_the_furthest() {
        let lines =
            |times: &[&str]| times.iter().map(|time| format!("[{time:>12}] text\n")).collect::<Vec<_>>().concat();
        let (new, old) = (lines(&["3.000000", "3.000002", "3.000001"]), lines(&["1.000000", "2.000000"]));
        assert_eq!(oldest((new.clone() + &old).as_bytes()), Some(new.len()));
        assert_eq!(oldest(old.as_bytes()), None, "it has filled the ring, or has just gone round");
        assert_eq!(oldest(b"no times\nat all\n"), None);
        assert_eq!(oldest(b"not full\n\0"), Some(0));
    }

    #[test]
    fn new_bytes_begin_behind_the_longest_way_without_any() {
        let end = RING as usize - 1;
        assert_eq!(first_of_new(vec![]), None);
        assert_eq!(first_of_new(vec![7]), Some(7));
        assert_eq!(first_of_new(vec![7, 9, 30]), Some(7));
        assert_eq!(first_of_new(vec![0, 1, end - 5, end]), Some(end - 5), "around the end");
    }
}
