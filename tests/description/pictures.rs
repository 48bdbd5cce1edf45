//! The pictures of the README and the guide, which `benches/pictures` draws.

use std::collections::BTreeSet;
use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};

#[path = "../../benches/pictures/parts.rs"]
mod parts;
#[path = "../../benches/pictures/screen.rs"]
mod screen;
#[path = "../../benches/pictures/svg.rs"]
mod svg;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const MAX_BYTES: usize = 64_000;

fn root() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

fn read(name: &str) -> String {
    fs::read_to_string(root().join("src/guide/pictures").join(name)).unwrap()
}

/// Returns the tags of an SVG without their angle brackets, or the first thing that is not well-formed.
fn tags(svg: &str) -> std::result::Result<Vec<&str>, String> {
    let (mut open, mut tags) = (Vec::new(), Vec::new());
    for part in svg.split('<').skip(1) {
        let (tag, text) = part.split_once('>').ok_or(format!("no end: <{part}"))?;
        let name = tag.split_whitespace().next().unwrap_or_default();
        if tag.matches('"').count() % 2 != 0 || text.contains('>') {
            return Err(format!("stray quote or angle bracket: <{part}"));
        }
        for reference in text.split('&').skip(1) {
            if !["amp;", "lt;", "gt;"].iter().any(|known| reference.starts_with(known)) {
                return Err(format!("not a character reference: &{reference}"));
            }
        }
        match name.strip_prefix('/') {
            Some(name) if open.pop() != Some(name) => return Err(format!("no such element is open: </{name}>")),
            Some(_) => {}
            None if tag.ends_with('/') => {}
            None => open.push(name),
        }
        tags.push(tag);
    }
    if open.is_empty() { Ok(tags) } else { Err(format!("not closed: {open:?}")) }
}

#[test]
fn pictures_are_well_formed() {
    for name in ["recording.svg", "benchmarks.svg", "parts.svg"] {
        let svg = read(name);
        let tags = tags(&svg).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(tags.iter().filter(|tag| tag.starts_with("text ")).count() > 10, "{name} shows next to nothing");
        assert!(svg.len() <= MAX_BYTES, "{name} has {} bytes", svg.len());
        // GitHub and docs.rs run no scripts in pictures, and load nothing for them.
        let forbidden = ["<script", "href", "url(", "@import", "<foreignObject"];
        assert!(!forbidden.iter().any(|word| svg.contains(word)), "{name}");
        assert!(!svg.contains("\n\n"), "{name} has a blank line, which ends an SVG in Markdown");
    }
}

#[test]
fn malformed_svg_is_found() {
    assert_eq!(tags("<svg a=\"1\"><g/>&amp;</svg>").unwrap(), ["svg a=\"1\"", "g/", "/svg"]);
    for malformed in ["<svg>", "<svg></g>", "<svg", "<svg a=\"></svg>", "<svg>&</svg>", "<svg>></svg>"] {
        assert!(tags(malformed).is_err(), "{malformed}");
    }
}

#[test]
fn picture_of_the_parts_names_the_folders() {
    let svg = read("parts.svg");
    let folders = svg.lines().filter(|line| line.contains("mono folder"));
    let named: BTreeSet<_> = folders.map(|line| line.split(['<', '>']).nth(2).unwrap().to_owned()).collect();
    let stem = |path: &Path| path.file_stem().unwrap().to_str().unwrap().to_owned();
    let entries = fs::read_dir(root().join("src")).unwrap().map(|entry| stem(&entry.unwrap().path()));
    assert_eq!(named, entries.filter(|name| name != "lib").collect());
}

#[test]
fn picture_of_the_parts_is_up_to_date() {
    let command = "cargo run --release -p hyperkit-benches --bin pictures -- parts";
    assert!(parts::draw(&root()).unwrap() == read("parts.svg"), "draw it again: {command}");
}

#[test]
fn recording_shows_the_commands_and_no_path_of_the_machine() {
    let svg = read("recording.svg");
    let text: String = svg.lines().filter(|line| line.starts_with("<text")).map(shown).collect();
    for typed in ["cargo run --example boot", "uname -srm", "nproc", "poweroff"] {
        assert!(text.contains(&typed.replace(' ', "")), "{typed} is not in {text}");
    }
    for path in ["/tmp/", "/home/", "/root/", "/Users/"] {
        assert!(!text.contains(path), "{path} is in {text}");
    }
}

/// Returns the text of a line of an SVG, without blanks.
fn shown(line: &str) -> String {
    line.split(['<', '>']).nth(2).unwrap_or_default().replace(' ', "")
}

/// Returns row, column, text and times of all pieces, after output at the times 0, 1 and so on.
fn pieces(outputs: &[&str]) -> Vec<(usize, usize, String, u32, Option<u32>)> {
    let mut screen = screen::Screen::new(8);
    for (time, output) in (0..).zip(outputs) {
        output.chars().for_each(|character| screen.put(character));
        screen.show(time);
    }
    let pieces = screen.into_pieces().into_iter();
    pieces.map(|piece| (piece.row, piece.column, piece.text, piece.from, piece.until)).collect()
}

#[test]
fn recorded_line_grows_wraps_and_is_rewritten() {
    let piece = |row, column, text: &str, from, until| (row, column, text.to_owned(), from, until);
    assert_eq!(pieces(&["a", "b\r\n"]), [piece(0, 0, "a", 0, None), piece(0, 1, "b", 1, None)]);
    assert_eq!(pieces(&["12345678", "9"]), [piece(0, 0, "12345678", 0, None), piece(1, 0, "9", 1, None)]);
    assert_eq!(pieces(&["old", "\r\x1b[Knew"]), [piece(0, 0, "old", 0, Some(1)), piece(0, 0, "new", 1, None)]);
    assert_eq!(pieces(&["ab\x08 \x08c"]), [piece(0, 0, "ac", 0, None)]);
    assert_eq!(pieces(&["\x1b]0;title\x07\x1b[6n\x1b[?25lx"]), [piece(0, 0, "x", 0, None)]);
    assert_eq!(pieces(&["a\x1b[1;32mb\x1b[0m"]), [piece(0, 0, "a", 0, None), piece(0, 1, "b", 0, None)]);
}

#[test]
fn recorded_cursor_follows_the_output() {
    let mut screen = screen::Screen::new(8);
    "ab\r\n\tc".chars().for_each(|character| screen.put(character));
    assert_eq!(screen.cursor(), (1, 8));
}
