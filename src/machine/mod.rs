//! The verbs of a description: start, run, find again, remove.

mod lookup;
mod prepare;
mod remove;
mod start;
