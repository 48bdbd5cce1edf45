//! Draws the pictures of the README and the guide, and writes them to `src/guide/pictures`. One command draws one picture:
//! `cargo run --release -p hyperkit-benches --bin pictures -- recording|benchmarks|parts`.

mod benchmarks;
mod parts;
mod recording;
mod screen;
mod svg;

use std::error::Error;
use std::fs;
use std::path::Path;
use std::process::{Command, ExitCode};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const USAGE: &str = "\
usage: pictures recording          runs `cargo run --example boot` in a terminal and records it
       pictures benchmarks [FILE]  draws the output of `cargo bench`: FILE, - for standard input, or a run of its own
       pictures parts              draws the folders of src";

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("/"));
    let (name, drawn) = match arguments[..] {
        ["recording"] => ("recording", recording::draw(root)),
        ["benchmarks"] => ("benchmarks", benchmarks::draw(root, None)),
        ["benchmarks", file] => ("benchmarks", benchmarks::draw(root, Some(file))),
        ["parts"] => ("parts", parts::draw(root)),
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    let path = root.join("src/guide/pictures").join(name).with_extension("svg");
    match drawn.and_then(|svg| Ok(fs::write(&path, svg)?)) {
        Ok(()) => {
            println!("{}", path.display());
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("pictures: {name}: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Runs `cargo` in the repository, its messages on this program's stderr, and returns its output.
fn cargo(root: &Path, arguments: &[&str]) -> Result<String> {
    let mut command = Command::new("cargo");
    let output = command.args(arguments).current_dir(root).stderr(std::process::Stdio::inherit()).output()?;
    if !output.status.success() {
        return Err(format!("cargo {} failed: {}", arguments.join(" "), output.status).into());
    }
    Ok(String::from_utf8(output.stdout)?)
}
