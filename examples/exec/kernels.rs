//! Runs the program with each kernel, and prints a table of the results.

use std::error::Error;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::command_line::Options;
use crate::output::warn;
use crate::{Ended, report};

/// A run of the program.
struct Run<'a> {
    kernel: &'a Path,
    /// `None` if the program could not be run.
    ended: Option<Ended>,
    duration: Duration,
}

/// Runs the program with each of the kernels, or with the guest's own, and returns the exit status.
pub fn run_all(options: &Options, run: impl Fn(Option<&Path>) -> Result<Ended, Box<dyn Error>>) -> u8 {
    if !options.has_table {
        let kernel = options.kernels.first().map(AsRef::as_ref);
        return status(run(kernel).map_err(|error| report(&*error)).ok());
    }
    let mut runs = Vec::new();
    for kernel in &options.kernels {
        warn(format_args!("exec: kernel {}\n", kernel.display()));
        let begin = Instant::now();
        let ended = run(Some(kernel)).map_err(|error| report(&*error)).ok();
        runs.push(Run { kernel, ended, duration: begin.elapsed() });
        if ended.is_some_and(Ended::ends_exec) {
            break;
        }
    }
    warn(table(&runs, options.kernels.len()));
    runs.iter().map(|run| status(run.ended)).find(|&status| status != 0).unwrap_or(0)
}

fn status(ended: Option<Ended>) -> u8 {
    ended.map_or(crate::FAILED, Ended::status)
}

fn table(runs: &[Run], kernels: usize) -> String {
    let width = runs.iter().map(|run| run.kernel.display().to_string().chars().count()).max().unwrap_or(0).max(6);
    let mut table = format!("{:<width$}  {:<9}  {:>6}  {:>7}\n", "KERNEL", "RESULT", "STATUS", "SECONDS");
    for run in runs {
        let result = match run.ended {
            None => "not run",
            Some(Ended::TimedOut) => "timed out",
            Some(ended) if ended.ends_exec() => "ended",
            Some(ended) if ended.status() == 0 => "passed",
            Some(_) => "failed",
        };
        let (name, status, seconds) = (run.kernel.display().to_string(), status(run.ended), run.duration.as_secs_f64());
        table += &format!("{name:<width$}  {result:<9}  {status:>6}  {seconds:>7.1}\n");
    }
    let passed = runs.iter().filter(|run| status(run.ended) == 0).count();
    table + &format!("{passed} of {kernels} kernels passed\n")
}
