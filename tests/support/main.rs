//! `ringseed`, built for the tests.
#![forbid(unsafe_code)]

fn main() -> std::process::ExitCode {
    ringseed::run(std::env::args_os())
}
