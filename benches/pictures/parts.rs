//! The folders of `src` as a stack, each on those that it uses, and what they have to do with outside of the crate.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use super::Result;
use super::svg::{picture, rect, text};

/// What each folder and file of `src` is for. Their order is that of the test `layers`.
const WORDS: [(&str, &str); 13] = [
    ("guide", "pages of documentation"),
    ("machine", "starts a described VM, finds it again, removes it"),
    ("vm", "a running VM: console, network, vsock, shutdown"),
    ("runtime", "watches the hypervisor: its output and its exit"),
    ("preflight", "checks files and host; creates and locks images"),
    ("engine", "arguments and control of each hypervisor"),
    ("process", "a process by its ID: whether it runs; signals"),
    ("state", "reads, writes and locks the state directory"),
    ("plan", "PCI slots, serial ports; what is not valid"),
    ("config", "the description of a VM, and its JSON"),
    ("sys", "files, locks, sockets and terminals"),
    ("error", "what can go wrong; may name types of any folder"),
    ("exit", "how a VM exited"),
];
const ENGINE: &str = "engine";
/// Only text, so that it stands beside the stack.
const GUIDE: &str = "guide";

const WIDTH: f64 = 900.0;
const HEAD: f64 = 50.0;
const TOP: f64 = 122.0;
const STACK: [f64; 2] = [52.0, 436.0];
const BETWEEN: [f64; 2] = [530.0, 164.0];
const HYPERVISOR: [f64; 2] = [736.0, 140.0];
const ROW: f64 = 34.0;
const GAP: f64 = 6.0;

/// A row of the stack.
struct Row<'a> {
    name: &'a str,
    words: &'a str,
    x: f64,
    y: f64,
    width: f64,
    height: f64,
}

impl Row<'_> {
    fn middle(&self) -> f64 {
        self.y + self.height / 2.0
    }
}

/// Returns the folders in the order that the tests check, the topmost first.
fn layers(root: &Path) -> Result<Vec<String>> {
    let test = fs::read_to_string(root.join("tests/description/layers.rs"))?;
    let list = test.split_once("const LAYERS").and_then(|(_, rest)| rest.split_once("= [")?.1.split_once(']'));
    let (list, _) = list.ok_or("no LAYERS in tests/description/layers.rs")?;
    let mut names: Vec<_> = list.split('"').skip(1).step_by(2).map(str::to_owned).collect();
    names.reverse();
    Ok(names)
}

/// Returns the folders of the engines.
fn engines(root: &Path) -> Result<Vec<String>> {
    let entries = fs::read_dir(root.join("src").join(ENGINE))?.collect::<std::io::Result<Vec<_>>>()?;
    let folders = entries.iter().filter(|entry| entry.path().is_dir());
    let mut names: Vec<_> = folders.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    Ok(names)
}

pub fn draw(root: &Path) -> Result<String> {
    let (names, engines) = (layers(root)?, engines(root)?);
    let mut rows = Vec::new();
    let mut y = TOP;
    for name in &names {
        let (_, words) = WORDS.iter().find(|(known, _)| known == name).ok_or(format!("no words for src/{name}"))?;
        let height = if name == ENGINE { 2.0 * ROW } else { ROW };
        if name == GUIDE {
            rows.push(Row { name, words, x: BETWEEN[0], y: HEAD, width: WIDTH - 24.0 - BETWEEN[0], height });
            continue;
        }
        rows.push(Row { name, words, x: STACK[0], y, width: STACK[1], height });
        y += height + GAP;
    }
    let height = y + 18.0;
    let mut body = text("text title", [24.0, 34.0], "The parts of hyperkit");
    body += &rect("box", [STACK[0], HEAD], [STACK[1], ROW]);
    body += &text("text", [STACK[0] + 14.0, HEAD + 22.0], "your program");
    body += &text("quiet", [STACK[0] + 108.0, HEAD + 22.0], "describes a VM, and starts it");
    body += &arrow([STACK[0] + STACK[1] / 2.0, HEAD + ROW], [STACK[0] + STACK[1] / 2.0, TOP - 2.0]);
    body += &text("quiet small", [STACK[0], TOP - 10.0], "the crate: folders of src");
    body += &text("quiet small", [BETWEEN[0], TOP - 10.0], "outside of the crate");
    for row in &rows {
        body += &rect("part", [row.x, row.y], [row.width, row.height]);
        body += &text("text mono folder", [row.x + 14.0, row.y + 22.0], row.name);
        body += &text("text", [row.x + 108.0, row.y + 22.0], row.words);
        if row.name == ENGINE {
            for (number, engine) in engines.iter().enumerate() {
                let x = STACK[0] + 108.0 + 110.0 * number as f64;
                body += &rect("page", [x, row.y + 33.0], [100.0, 26.0]);
                body += &text("text mono middle engine", [x + 50.0, row.y + 50.5], engine);
            }
        }
    }
    body += &arrow([32.0, TOP], [32.0, y - GAP]);
    let middle = f64::midpoint(TOP, y);
    let _ = writeln!(
        body,
        "<text class=\"quiet small middle\" x=\"22\" y=\"{middle}\" transform=\"rotate(-90 22 {middle})\">each folder uses only \
         those below it</text>"
    );
    body += &outside(&rows)?;
    let title =
        "The folders of src, each on those that it uses, and the hypervisor, files and sockets outside of the crate";
    Ok(picture("parts", [WIDTH as usize, height as usize], title, "", &body))
}

/// Draws what is outside of the crate, at the height of the folders that have to do with it.
fn outside(rows: &[Row]) -> Result<String> {
    let row = |name: &str| rows.iter().find(|row| row.name == name).ok_or(format!("no folder src/{name}"));
    let right = STACK[0] + STACK[1];
    let (first, last) = (row("vm")?, row("state")?);
    let mut body = rect("box", [HYPERVISOR[0], first.y], [HYPERVISOR[1], last.y + last.height - first.y]);
    let middle = HYPERVISOR[0] + HYPERVISOR[1] / 2.0;
    body += &text("text middle", [middle, first.y + 24.0], "hypervisor:");
    body += &text("text middle", [middle, first.y + 43.0], "hyperkit or QEMU");
    let guest = [HYPERVISOR[0] + 12.0, first.y + 58.0];
    body += &rect("page", guest, [HYPERVISOR[1] - 24.0, last.y + last.height - 12.0 - guest[1]]);
    body += &text("text middle", [middle, guest[1] + 24.0], "guest");
    let things = [("vm", "console (a pty), vsock"), ("preflight", "kernel, disk images"), ("state", "state directory")];
    for (name, thing) in things {
        let row = row(name)?;
        body += &rect("box", [BETWEEN[0], row.y], [BETWEEN[1], row.height]);
        body += &text("text middle", [BETWEEN[0] + BETWEEN[1] / 2.0, row.middle() + 5.0], thing);
        body += &arrow([right, row.middle()], [BETWEEN[0], row.middle()]);
        body += &arrow([HYPERVISOR[0], row.middle()], [BETWEEN[0] + BETWEEN[1], row.middle()]);
    }
    let deeds = [
        ("runtime", "starts it, reads its output"),
        ("engine", "power button, pause"),
        ("process", "signals; whether it runs"),
    ];
    for (name, deed) in deeds {
        let row = row(name)?;
        body += &text("quiet small middle", [BETWEEN[0] + BETWEEN[1] / 2.0, row.middle() - 6.0], deed);
        body += &arrow([right, row.middle()], [HYPERVISOR[0], row.middle()]);
    }
    Ok(body)
}

/// Draws a horizontal or vertical arrow.
fn arrow([x, y]: [f64; 2], [to_x, to_y]: [f64; 2]) -> String {
    let (along_x, along_y) =
        ((to_x - x).signum() * f64::from(u8::from(x != to_x)), (to_y - y).signum() * f64::from(u8::from(y != to_y)));
    let (back_x, back_y) = (to_x - 7.0 * along_x, to_y - 7.0 * along_y);
    let (side_x, side_y) = (4.0 * along_y, 4.0 * along_x);
    format!(
        "<path class=\"line\" d=\"M{x} {y}L{to_x} {to_y}M{} {}L{to_x} {to_y}L{} {}\"/>\n",
        back_x + side_x,
        back_y + side_y,
        back_x - side_x,
        back_y - side_y
    )
}
