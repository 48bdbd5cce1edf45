//! The benchmarks as bars: each call together with its lower bound from the same run, and the calls whose cost grows together
//! with a multiple of a smaller case.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Read;
use std::path::Path;

use super::svg::{picture, rect, text};
use super::{Result, cargo};

/// A call, and the call that it is compared with, repeated some number of times.
struct Comparison {
    name: &'static str,
    call: &'static str,
    other: &'static str,
    other_name: &'static str,
    times: f64,
}

const fn row(name: &'static str, call: &'static str, other: &'static str, other_name: &'static str) -> Comparison {
    Comparison { name, call, other, other_name, times: 1.0 }
}

const FIRST_LINE: [&str; 2] = ["first line/this crate", "first line/by hand"];

/// `benches/calls.rs` and `benches/machines.rs` say why these are the lower bounds.
const BOUNDS: [Comparison; 5] = [
    row("start (stand-in for hyperkit)", "start/start", "start/bare_spawn_until_set_up", "hypervisor by hand"),
    row("start to guest’s first line (QEMU)", FIRST_LINE[0], FIRST_LINE[1], "QEMU by hand, same arguments"),
    row(
        "create_disk_image of 64 GiB",
        "image_of_64_gib/create_disk_image",
        "image_of_64_gib/bare_file",
        "create a file",
    ),
    row("from_state", "from_state/from_state", "from_state/read_and_parse", "read and parse the file"),
    row(
        "is_running",
        "is_running/running_vm",
        "is_running/pid_file_and_command_line",
        "read pid file and command line",
    ),
];

const GROWTH: [Comparison; 2] = [
    Comparison {
        times: 10.0,
        ..row(
            "list of 1,000 VMs",
            "list/of_state_directories/1000",
            "list/of_state_directories/100",
            "10 × list of 100",
        )
    },
    Comparison {
        times: 30.0,
        ..row("arguments for 30 devices", "arguments/hyperkit/30", "arguments/hyperkit/1", "30 × arguments for one")
    },
];

/// Draws the output of `cargo bench`: this file, or - for standard input, or else that of a run of its own.
pub fn draw(root: &Path, file: Option<&str>) -> Result<String> {
    let mut output = String::new();
    match file {
        Some("-") => drop(std::io::stdin().read_to_string(&mut output)?),
        Some(file) => output = std::fs::read_to_string(file)?,
        None => {
            // The benchmarks start the stand-in for hyperkit, which is a program of the tests.
            cargo(root, &["build", "--release"])?;
            output = cargo(root, &["bench"])?;
            print!("{output}");
        }
    }
    chart(&medians(&output))
}

/// Returns the medians in seconds, each by the names above it in divan's tree and its own.
fn medians(output: &str) -> BTreeMap<String, f64> {
    let mut found = BTreeMap::new();
    let mut names = Vec::new();
    for line in output.lines() {
        if let Some(times) = line.strip_prefix("guest's first line, median of ") {
            // 10: 73.1ms with this crate, 75.2ms without: 0.972
            let times = times.split([':', ',']).skip(1).filter_map(|time| seconds(time.split_whitespace().next()?));
            found.extend(FIRST_LINE.map(str::to_owned).into_iter().zip(times));
        }
        // Each level of the tree is indented by three characters.
        let Some(branch) = line.chars().position(|character| "├╰".contains(character)) else { continue };
        // The first column holds the name and the fastest time, the third the median.
        let line: String = line.chars().skip(branch + 3).collect();
        names.truncate(branch / 3);
        names.push(line.split_whitespace().next().unwrap_or_default().to_owned());
        if let Some(time) = line.split('│').nth(2).and_then(seconds) {
            found.insert(names.join("/"), time);
        }
    }
    found
}

fn seconds(time: &str) -> Option<f64> {
    let time = time.trim();
    let unit = time.find(|character: char| !character.is_ascii_digit() && character != '.')?;
    let factor = match time[unit..].trim() {
        "ns" => 1e-9,
        "µs" => 1e-6,
        "ms" => 1e-3,
        "s" => 1.0,
        _ => return None,
    };
    Some(time[..unit].parse::<f64>().ok()? * factor)
}

const WIDTH: f64 = 860.0;
const LEFT: f64 = 256.0;
const TOP: f64 = 90.0;
const ROW: f64 = 50.0;

fn chart(medians: &BTreeMap<String, f64>) -> Result<String> {
    let median = |name: &str| medians.get(name).copied().ok_or_else(|| format!("no median of {name} in the output"));
    let mut largest: f64 = 1.0;
    for comparison in BOUNDS.iter().chain(&GROWTH) {
        largest = largest.max(median(comparison.call)? / (median(comparison.other)? * comparison.times));
    }
    // The names of the bars are behind them.
    let scale = (WIDTH - LEFT - 150.0) / largest;
    let height = TOP + (BOUNDS.len() + GROWTH.len()) as f64 * ROW + 92.0;

    let mut body = text("text title", [20.0, 34.0], "What the calls cost, as multiples of a lower bound");
    body += &rect("strong", [20.0, 48.0], [12.0, 12.0]);
    body += &text("text small", [38.0, 58.0], "the call");
    body += &rect("weak", [100.0, 48.0], [12.0, 12.0]);
    body += &text(
        "text small",
        [118.0, 58.0],
        "what it is compared with, in the same run of cargo bench; times are medians",
    );
    for number in 0..=largest.floor() as usize {
        let x = LEFT + number as f64 * scale;
        let _ = writeln!(body, "<path class=\"line grid\" d=\"M{x:.1} {TOP}V{:.1}\"/>", height - 54.0);
        body += &text("quiet small middle", [x.round(), height - 38.0], &format!("{number}×"));
    }
    let mut y = TOP + 8.0;
    for (name, comparisons) in [("Compared with a lower bound", &BOUNDS[..]), ("Compared with a smaller case", &GROWTH)]
    {
        body += &text("quiet small", [20.0, y + 4.0], name);
        y += 16.0;
        for comparison in comparisons {
            let (call, other) = (median(comparison.call)?, median(comparison.other)? * comparison.times);
            let length = round(call / other * scale);
            let (value, bound) = (
                format!("{:.1}× · {}", call / other, time(call)),
                format!("{} · {}", time(other), comparison.other_name),
            );
            body += &text("text", [20.0, y + 22.0], comparison.name);
            body += &rect("strong", [LEFT, y], [length, 16.0]);
            body += &text("text small halo", [LEFT + length + 8.0, y + 12.5], &value);
            body += &rect("weak", [LEFT, y + 18.0], [round(scale), 16.0]);
            body += &text("quiet small halo", [LEFT + round(scale) + 8.0, y + 30.5], &bound);
            y += ROW;
        }
        y += 12.0;
    }
    let axis = "times the lower bound, or the multiple of the smaller case";
    body += &text("quiet small middle", [LEFT + (WIDTH - LEFT - 150.0) / 2.0, height - 16.0], axis);
    let style = "#benchmarks .grid{opacity:.3}\n";
    Ok(picture("benchmarks", [WIDTH as usize, height as usize], "Benchmarks", style, &body))
}

fn round(length: f64) -> f64 {
    (length * 10.0).round() / 10.0
}

/// Two digits are what another run also shows.
fn time(seconds: f64) -> String {
    let (number, unit) = match seconds {
        ..1e-6 => (seconds * 1e9, "ns"),
        1e-6..1e-3 => (seconds * 1e6, "µs"),
        1e-3..1.0 => (seconds * 1e3, "ms"),
        _ => (seconds, "s"),
    };
    if number < 9.95 { format!("{number:.1} {unit}") } else { format!("{number:.0} {unit}") }
}
