//! Tests that change their whole process run in one of their own: the test binary started again.

use std::process::{Command, Stdio};

const CHILD: &str = "RINGSEED_SYS_TEST_CHILD";

/// True in the child. In the parent it runs the child, checks that the test passed there, and is
/// false.
pub fn is_child(test: &str) -> bool {
    if std::env::var(CHILD).is_ok_and(|name| name == test) {
        return true;
    }
    let output = command(test).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("1 passed"), "{text}\n{errors}");
    false
}

/// The command that runs one test in a child.
pub fn command(test: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", test, "--test-threads=1", "--nocapture"]);
    command.env(CHILD, test).stdin(Stdio::null());
    command
}
