//! Nothing: Cargo wants a library or a program in each package. The benchmarks are in the files beside this one.
