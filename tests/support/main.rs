//! `ringseed`, built for the tests.
#![forbid(unsafe_code)]

/// With this variable set the process, and all that it starts, may not use io_uring: a seccomp filter
/// says `EPERM`, as the default profiles of containers do.
const FORBID: &str = "RINGSEED_TEST_FORBID_IO_URING";

fn main() -> std::process::ExitCode {
    if std::env::var_os(FORBID).is_some()
        && let Err(error) = ringseed_sys::process::forbid_io_uring()
    {
        eprintln!("cannot forbid io_uring: {error}");
        return std::process::ExitCode::from(99);
    }
    ringseed::run(std::env::args_os())
}
