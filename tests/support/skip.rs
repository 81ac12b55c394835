//! Tests that need more than a Rust toolchain: they report what is missing and how to install it. In
//! CI, where `RINGSEED_REQUIRE=1`, a missing capability is a failure with its name.

use libtest_mimic::{Failed, Trial};

/// A capability that a machine may lack.
#[derive(Clone, Debug)]
pub struct Need {
    /// What is needed, in a word.
    pub name: &'static str,
    /// How a user gets it.
    pub install: &'static str,
    /// Whether it is here.
    pub present: bool,
}

/// Whether a missing capability is a failure.
pub fn is_required() -> bool {
    std::env::var_os("RINGSEED_REQUIRE").is_some_and(|value| value == "1")
}

/// A test that runs when all of `needs` are present; else it is reported as ignored with the cure, or
/// fails by name where `RINGSEED_REQUIRE=1`.
pub fn trial(
    name: &str,
    needs: &[Need],
    test: impl FnOnce() -> Result<(), Failed> + Send + 'static,
) -> Trial {
    let missing: Vec<&Need> = needs.iter().filter(|need| !need.present).collect();
    if missing.is_empty() {
        return Trial::test(name, test);
    }
    let text: Vec<String> =
        missing.iter().map(|need| format!("{} is missing ({})", need.name, need.install)).collect();
    let text = text.join("; ");
    if is_required() {
        return Trial::test(name, move || Err(Failed::from(text)));
    }
    eprintln!("skipped {name}: {text}");
    Trial::test(name, || Ok(())).with_ignored_flag(true)
}
