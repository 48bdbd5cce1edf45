//! The verbs of a description: define, start, run, find again, stop, remove.

mod check;
mod console;
mod define;
mod lookup;
mod prepare;
mod remove;
mod start;
mod starting;

pub use lookup::Found;
pub use start::StartOrAttach;
pub use starting::Starting;
