//! A ringseed datatrust.
#![forbid(unsafe_code)]
fn main() -> std::process::ExitCode {
    ringseed::run(std::env::args_os())
}
