//! Which drivers this program has: those of the engine, and those from outside that it was built with.

use clap::builder::{PossibleValue, PossibleValuesParser};
use ringseed_engine::IoDriver;

use crate::error::{Code, Error, Result};

/// A driver by the word that chooses it; without one, this program was built without it.
type Named = (&'static str, Option<IoDriver>);

/// Every driver there is.
const DRIVERS: [Named; 5] = [
    ("auto", Some(IoDriver::Auto)),
    ("uring", Some(IoDriver::Uring)),
    ("epoll", Some(IoDriver::Epoll)),
    ("glommio", GLOMMIO),
    ("tokio-uring", TOKIO_URING),
];

#[cfg(feature = "glommio")]
const GLOMMIO: Option<IoDriver> = Some(IoDriver::External(ringseed_driver_glommio::DRIVER));
#[cfg(not(feature = "glommio"))]
const GLOMMIO: Option<IoDriver> = None;

#[cfg(feature = "tokio-uring")]
const TOKIO_URING: Option<IoDriver> = Some(IoDriver::External(ringseed_driver_tokio_uring::DRIVER));
#[cfg(not(feature = "tokio-uring"))]
const TOKIO_URING: Option<IoDriver> = None;

/// The drivers of this program, for people.
pub fn built_in() -> impl Iterator<Item = &'static str> {
    let is_here = |(name, driver): &Named| driver.is_some() && *name != "auto";
    DRIVERS.into_iter().filter(is_here).map(|(name, _)| name)
}

/// Takes the word of any driver on the command line; help names those that are here.
pub(crate) fn value_parser() -> PossibleValuesParser {
    let values = DRIVERS.map(|(name, driver)| PossibleValue::new(name).hide(driver.is_none()));
    PossibleValuesParser::new(values)
}

/// The driver of that name.
///
/// # Errors
/// `code` when there is none, or when this program was built without it, with the command that builds one
/// that has it.
pub(crate) fn find(name: &str, code: Code) -> Result<IoDriver> {
    match DRIVERS.into_iter().find(|(known, _)| *known == name) {
        Some((_, Some(driver))) => Ok(driver),
        Some((_, None)) => {
            let what = format!("this program was built without the driver {name}");
            let cure = format!("build one that has it: cargo build --release --features {name}");
            Err(Error::new(code, what).cure(cure))
        }
        None => {
            let known = DRIVERS.map(|(name, _)| name).join(", ");
            Err(Error::new(code, format!("{name:?} is none of {known}")))
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::Cli;

    #[test]
    fn every_driver_is_here_or_says_how_to_get_it() {
        for (name, driver) in DRIVERS {
            match find(name, Code::BadValue) {
                Ok(found) => assert_eq!(Some(found), driver),
                Err(error) => {
                    assert_eq!((driver, error.code), (None, Code::BadValue));
                    let cure = error.cure.unwrap();
                    assert!(cure.contains(&format!("--features {name}")), "{cure}");
                }
            }
        }
        assert_eq!(built_in().any(|name| name == "glommio"), cfg!(feature = "glommio"));
        assert_eq!(built_in().any(|name| name == "tokio-uring"), cfg!(feature = "tokio-uring"));
        let words = ["ringseed", "get", "t.torrent", "--data", "d", "--io-driver"];
        for (name, driver) in DRIVERS {
            // Taken whether it is here or not, so that the error can say what to do.
            assert!(Cli::try_parse_from(words.into_iter().chain([name])).is_ok(), "{name}");
            let help = Cli::try_parse_from(["ringseed", "get", "--help"]).unwrap_err().to_string();
            let list = help.split("--io-driver").nth(1).and_then(|rest| rest.split('[').nth(2));
            let mut listed = list.unwrap().split([' ', ',', ':', ']', '\n']);
            assert_eq!(listed.any(|word| word == name), driver.is_some(), "{list:?}");
        }
        assert!(Cli::try_parse_from(words.into_iter().chain(["iocp"])).is_err());
        let error = find("iocp", Code::ConfigValue).unwrap_err();
        assert_eq!(error.code, Code::ConfigValue);
        assert!(error.what.contains("tokio-uring"), "{}", error.what);
    }
}
