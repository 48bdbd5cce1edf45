//! The calls on a description: check, define, start, find again, stop, remove.

// The order of the blocks on `HyperKit`'s page of the documentation is the order of these modules. The empty lines keep
// rustfmt from sorting them.
mod check;

mod define;

mod prepare;
mod spawn;
mod start;
mod starting;
mod undo;

mod lookup;

mod recorded;

mod console;

mod remove;

pub use lookup::Found;
pub use start::StartOrAttach;
pub use starting::Starting;
