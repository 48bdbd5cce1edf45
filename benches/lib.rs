//! Empty: Cargo requires a library or a program in each package. The benchmarks are in the other files of this directory.
