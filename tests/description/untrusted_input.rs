//! Property tests of untrusted input: files and arguments that consist of random bytes, or of recorded bytes with a few
//! changes.

use std::io::Write;
use std::process::{Command, Stdio};

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use serde_json::Value;

use crate::common::arm_image::{ArmImage, SECTION_SIZE};
use crate::common::elf_kernel::{ElfKernel, segment};
use crate::common::{bz_image, inputs};

/// Returns the recorded states and command lines of the Go packages.
fn recorded() -> Vec<Value> {
    let years = [include_str!("../recorded/argv-2017.jsonl"), include_str!("../recorded/argv-2020.jsonl")];
    years.iter().flat_map(|year| year.lines()).map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn states() -> Vec<Vec<u8>> {
    recorded().iter().map(|case| case["state"].to_string().into_bytes()).collect()
}

fn command_lines() -> Vec<Vec<u8>> {
    let words = |case: &Value| serde_json::from_value::<Vec<String>>(case["arguments"].clone()).unwrap();
    recorded().iter().map(|case| words(case).join("\n").into_bytes()).collect()
}

fn pty_paths() -> Vec<Vec<u8>> {
    ["/dev/ttys001", "/dev/pts/7\n", "/dev", "/dev/", "/dev/../etc/passwd", "/dev/./x", "/dev/pts/..", "dev/ttys001"]
        .map(|tty| tty.as_bytes().to_vec())
        .to_vec()
}

fn kernels() -> Vec<Vec<u8>> {
    let image = ArmImage::new(0x20_0000).0;
    vec![ElfKernel::new(b"data", 0x20_0000).0, bz_image(2047), gzip(&image), image]
}

/// Packs bytes as `gzip` does.
fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut child = Command::new("gzip").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    // Less than a pipe holds.
    child.stdin.take().unwrap().write_all(bytes).unwrap();
    child.wait_with_output().unwrap().stdout
}

/// A kernel with other bytes in its headers, perhaps cut.
fn damaged_kernel() -> impl Strategy<Value = Vec<u8>> {
    // The headers of the ELF file, its note, the header of the bzImage, and those of the Image.
    let at = prop_oneof![0..segment(3), 0x2000..0x2018_usize, 0x1f1..0x264_usize, 0..SECTION_SIZE + 8];
    let value = select(vec![0, 1, 2, 3, 4, 0x12, 0x10, 0x7f, 0x80, 0xff]);
    let changes = vec((at, value, 1..9_usize), 0..4);
    (select(kernels()), changes, any::<Index>(), any::<bool>()).prop_map(|(mut bytes, changes, end, is_cut)| {
        for (at, value, length) in changes {
            bytes.iter_mut().skip(at).take(length).for_each(|byte| *byte = value);
        }
        bytes.truncate(if is_cut { end.index(bytes.len()) } else { usize::MAX });
        bytes
    })
}

/// Pieces that are inserted into recorded input: separators, terminators and words of JSON and of hyperkit.
const PIECES: [&str; 24] = [
    ",",
    ":",
    ";",
    "=",
    "%",
    "?",
    "&",
    "/",
    "..",
    "\n",
    "\0",
    "-",
    "\"",
    "\"\"",
    "null",
    "{}",
    "[\"\"]",
    "0",
    "1e-7",
    "31",
    "-s",
    "auto",
    "format=qcow",
    "\u{e9}",
];

/// One of the inputs, from which some bytes were removed and into which some pieces were inserted.
fn changed(inputs: Vec<Vec<u8>>) -> impl Strategy<Value = Vec<u8>> {
    let change = (any::<Index>(), 0..12_usize, prop_oneof![Just(""), select(&PIECES[..])]);
    (select(inputs), vec(change, 0..4)).prop_map(|(mut bytes, changes)| {
        for (at, length, piece) in changes {
            let from = at.index(bytes.len() + 1);
            let to = bytes.len().min(from + length);
            bytes.splice(from..to, piece.bytes());
        }
        bytes
    })
}

/// Random bytes, or one of the inputs with changes.
fn random_or_changed(inputs: Vec<Vec<u8>>) -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![1 => vec(any::<u8>(), 0..100), 3 => changed(inputs)]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_state_file_round_trips_or_is_rejected(bytes in random_or_changed(states())) {
        inputs::check_json(&bytes);
    }

    #[test]
    fn any_command_line_round_trips_or_is_rejected(bytes in random_or_changed(command_lines())) {
        inputs::check_argv(&bytes);
    }

    #[test]
    fn no_pid_file_matches_an_unrelated_process(bytes in prop_oneof![vec(any::<u8>(), 0..40), "[0-9]{1,10}[ \n]?".prop_map(String::into_bytes)]) {
        inputs::check_pid_file(&bytes);
    }

    #[test]
    fn any_kernel_file_is_read_or_rejected(bytes in prop_oneof![1 => vec(any::<u8>(), 0..700), 9 => damaged_kernel()]) {
        inputs::check_kernel(&bytes);
    }

    #[test]
    fn any_tty_file_names_a_device_or_nothing(bytes in random_or_changed(pty_paths())) {
        inputs::check_tty_file(&bytes);
    }
}

/// The unrelated processes are process 1 and the process of this test.
#[test]
fn pid_of_a_running_unrelated_process_matches_no_vm() {
    for pid in [1, std::process::id()] {
        inputs::check_pid_file(pid.to_string().as_bytes());
    }
}

/// The property tests would prove little if the recorded inputs, which they change, were rejected.
#[test]
fn recorded_inputs_are_accepted() {
    kernels().iter().for_each(|kernel| inputs::check_kernel(kernel));
    for (state, command_line) in states().iter().zip(command_lines()) {
        assert!(serde_json::from_slice::<hyperkit::HyperKit>(state).is_ok());
        inputs::check_json(state);
        let words: Vec<_> = std::str::from_utf8(&command_line).unwrap().lines().collect();
        assert!(hyperkit::parse_arguments(&words).is_ok());
        inputs::check_argv(&command_line);
    }
}
