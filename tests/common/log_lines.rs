//! The log of the library. This is not a module of `common`, because the benchmarks use `common` without the crate `log`.

use std::sync::{Mutex, OnceLock, PoisonError, mpsc};

struct Logger {
    level: log::Level,
    lines: Mutex<mpsc::Sender<String>>,
}

impl log::Log for Logger {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        metadata.target() == "hyperkit"
    }

    fn log(&self, record: &log::Record<'_>) {
        if self.enabled(record.metadata()) && record.level() <= self.level {
            let line = record.args().to_string();
            assert!(!line.contains("logger-panics"), "the logger panics on request");
            let _ = self.lines.lock().unwrap_or_else(PoisonError::into_inner).send(line);
        }
    }

    fn flush(&self) {}
}

/// Returns the log lines of the library from now on, up to this level. A process has one logger, so this can be called once. The
/// logger panics if a line contains `logger-panics`.
pub fn log_lines(level: log::Level) -> mpsc::Receiver<String> {
    static LOGGER: OnceLock<Logger> = OnceLock::new();
    let (send, lines) = mpsc::channel();
    assert!(LOGGER.set(Logger { level, lines: Mutex::new(send) }).is_ok(), "the process has a logger");
    log::set_logger(LOGGER.get().unwrap()).unwrap();
    log::set_max_level(log::LevelFilter::Trace);
    lines
}
