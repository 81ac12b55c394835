//! Benchmark workloads.
fn main() {}
