//! The one error type of the command line: a stable code, *what* happened, *why*, and *what to do*.
//!
//! A code reads `RS-E` and four digits; the first two are the exit code, so that a script that keeps
//! only one of the two still knows the family. Codes are never reused or renumbered.

use std::fmt;
use std::path::Path;
use std::process::ExitCode;

use serde_json::{Value, json};

use crate::progress::tell_line;

/// Result of everything a command does.
pub type Result<T> = std::result::Result<T, Error>;

/// Stable codes. The discriminant is the printed number; its hundreds are the exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u16)]
pub enum Code {
    /// A broken invariant of our own.
    Bug = 101,
    /// The command line cannot be understood.
    Usage = 201,
    /// A value on the command line is of the wrong form.
    BadValue = 202,
    /// A market address that is not loopback, without the flag that allows it.
    NotLoopback = 203,
    /// The configuration file does not parse, or has keys we do not know.
    ConfigSyntax = 301,
    /// A configuration value is out of range, or two of them contradict each other.
    ConfigValue = 302,
    /// The node key is missing, unreadable or too widely readable.
    KeyFile = 303,
    /// The genesis file is missing, broken or not the one that was named.
    Genesis = 304,
    /// The folder is no datatrust's folder.
    NotInitialised = 305,
    /// The folder already belongs to a datatrust.
    AlreadyInitialised = 306,
    /// An operation on a file or the machine failed.
    Io = 401,
    /// Another process holds the folder.
    Locked = 402,
    /// The address cannot be bound.
    PortInUse = 403,
    /// A folder is missing.
    Missing = 404,
    /// A folder cannot be written.
    ReadOnly = 405,
    /// The kernel lacks what we cannot do without.
    Kernel = 406,
    /// io_uring is not to be had; the epoll driver takes over.
    NoRing = 407,
    /// Too few file descriptors.
    OpenFiles = 408,
    /// Too little lockable memory for a ring.
    Memlock = 409,
    /// The chosen place lies in memory.
    MemoryFs = 410,
    /// A process that we started has died.
    ChildDied = 411,
    /// A datatrust, peer or control socket does not answer.
    Unreachable = 501,
    /// No `ringseed up` is running.
    NoMarketRunning = 502,
    /// An answer took too long.
    TimedOut = 503,
    /// The other side does not speak our protocol, or not this version.
    BadAnswer = 504,
    /// Bytes on disk are not what their hash says.
    Damaged = 601,
    /// A `.torrent` file is not valid.
    BadTorrent = 602,
    /// The two views of a hybrid torrent describe different bytes.
    ViewsDiffer = 603,
    /// Datatrusts that must agree do not.
    MarketDiffers = 604,
    /// The user's source changed while we read it.
    SourceChanged = 605,
    /// Not enough free space.
    NoSpace = 801,
    /// The ledger refused a transaction.
    Refused = 1101,
    /// Stopped by a signal; running the same command again resumes.
    Interrupted = 1201,
}

impl Code {
    /// The process exit code of this family.
    pub fn exit(self) -> u8 {
        (self as u16 / 100) as u8
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RS-E{:04}", *self as u16)
    }
}

/// What went wrong, in words that an operator can act on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    /// Stable code; decides the exit code.
    pub code: Code,
    /// What happened, with the values involved; lower case, no full stop.
    pub what: String,
    /// Why it happened, where we know more than `what` says.
    pub why: Option<String>,
    /// What to do: a command that works as typed, where there is one.
    pub cure: Option<String>,
    /// Lines that belong to it, such as the last log lines of a dead child.
    pub lines: Vec<String>,
}

impl Error {
    /// An error with its code and *what*.
    pub fn new(code: Code, what: impl Into<String>) -> Error {
        Error { code, what: what.into(), why: None, cure: None, lines: Vec::new() }
    }

    /// Adds the reason.
    pub fn why(mut self, why: impl Into<String>) -> Error {
        self.why = Some(why.into());
        self
    }

    /// Adds what to do.
    pub fn cure(mut self, cure: impl Into<String>) -> Error {
        self.cure = Some(cure.into());
        self
    }

    /// Adds lines to be shown below.
    pub fn lines(mut self, lines: Vec<String>) -> Error {
        self.lines = lines;
        self
    }

    /// A broken invariant of our own.
    pub fn bug(what: impl Into<String>) -> Error {
        Error::new(Code::Bug, what)
            .why("this is a bug of ringseed, not of your setup")
            .cure("please report it with the lines above")
    }

    /// A failed operation on `path`, its code chosen by the kind of failure.
    pub fn io(doing: &str, path: &Path, error: std::io::Error) -> Error {
        use std::io::ErrorKind::*;
        let path = path.display();
        let (code, cure) = match error.kind() {
            NotFound => (Code::Missing, Some(format!("check that {path} exists"))),
            PermissionDenied | ReadOnlyFilesystem => {
                (Code::ReadOnly, Some(format!("give this user access to {path}")))
            }
            StorageFull | QuotaExceeded => {
                (Code::NoSpace, Some("free some space and run it again".to_owned()))
            }
            AddrInUse => (Code::PortInUse, None),
            _ => (Code::Io, None),
        };
        let made = Error::new(code, format!("cannot {doing} {path}")).why(error.to_string());
        match cure {
            Some(cure) => made.cure(cure),
            None => made,
        }
    }

    /// The JSON form: the same code and the same words as the text.
    pub fn to_json(&self) -> Value {
        self.json_as("error")
    }

    fn json_as(&self, kind: &str) -> Value {
        let mut object = json!({
            "schema": "ringseed.v1", "type": kind, "code": self.code.to_string(),
            "exit": self.code.exit(), "what": self.what,
        });
        if let Some(why) = &self.why {
            object["why"] = json!(why);
        }
        if let Some(cure) = &self.cure {
            object["cure"] = json!(cure);
        }
        if !self.lines.is_empty() {
            object["lines"] = json!(self.lines);
        }
        object
    }

    /// Prints it to stderr as an error, in text or as one line of JSON.
    pub fn print(&self, as_json: bool) {
        if as_json {
            tell_line(self.to_json());
        } else {
            tell_line(self.text("error"));
        }
    }

    /// Prints it to stderr as a warning: we go on, `now` says how.
    pub fn warn(&self, now: &str, as_json: bool) {
        if as_json {
            let mut object = self.json_as("warning");
            object["now"] = json!(now);
            tell_line(object);
        } else {
            let mut text = self.text("warning");
            text.push_str(&format!("\n  now   {now}"));
            tell_line(text);
        }
    }

    fn text(&self, kind: &str) -> String {
        let mut text = format!("{kind}[{}] {}", self.code, self.what);
        if let Some(why) = &self.why {
            text.push_str(&format!("\n  why   {why}"));
        }
        for line in &self.lines {
            text.push_str(&format!("\n  |     {line}"));
        }
        if let Some(cure) = &self.cure {
            text.push_str(&format!("\n  cure  {cure}"));
        }
        text
    }

    /// The process exit code.
    pub fn exit_code(&self) -> ExitCode {
        ExitCode::from(self.code.exit())
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{}] {}", self.code, self.what)?;
        if let Some(why) = &self.why {
            write!(f, ": {why}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {}

/// Rebuilds an error that crossed the control socket as JSON; what is not ours becomes a bug.
pub fn from_json(value: &Value) -> Error {
    let text = |key: &str| value[key].as_str().map(str::to_owned);
    let number = text("code").and_then(|code| code.strip_prefix("RS-E")?.parse::<u16>().ok());
    let code = ALL.iter().copied().find(|code| Some(*code as u16) == number);
    Error {
        code: code.unwrap_or(Code::Bug),
        what: text("what")
            .unwrap_or_else(|| format!("an answer that is no error of ours: {value}")),
        why: text("why"),
        cure: text("cure"),
        lines: value["lines"]
            .as_array()
            .map(|lines| lines.iter().filter_map(|l| l.as_str().map(str::to_owned)).collect())
            .unwrap_or_default(),
    }
}

/// Every code, in order of its number.
pub const ALL: &[Code] = &[
    Code::Bug,
    Code::Usage,
    Code::BadValue,
    Code::NotLoopback,
    Code::ConfigSyntax,
    Code::ConfigValue,
    Code::KeyFile,
    Code::Genesis,
    Code::NotInitialised,
    Code::AlreadyInitialised,
    Code::Io,
    Code::Locked,
    Code::PortInUse,
    Code::Missing,
    Code::ReadOnly,
    Code::Kernel,
    Code::NoRing,
    Code::OpenFiles,
    Code::Memlock,
    Code::MemoryFs,
    Code::ChildDied,
    Code::Unreachable,
    Code::NoMarketRunning,
    Code::TimedOut,
    Code::BadAnswer,
    Code::Damaged,
    Code::BadTorrent,
    Code::ViewsDiffer,
    Code::MarketDiffers,
    Code::SourceChanged,
    Code::NoSpace,
    Code::Refused,
    Code::Interrupted,
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_names_the_exit_code() {
        for code in ALL {
            assert!([1, 2, 3, 4, 5, 6, 8, 11, 12].contains(&code.exit()), "{code}");
        }
        assert_eq!(Code::Refused.to_string(), "RS-E1101");
        assert_eq!(Code::Refused.exit(), 11);
        assert_eq!(Code::Interrupted.exit(), 12);
        assert_eq!(Code::Locked.to_string(), "RS-E0402");
    }

    #[test]
    fn an_error_survives_the_control_socket() {
        let sent = Error::new(Code::NoSpace, "no room").why("1 of 2 GiB").cure("free space");
        assert_eq!(from_json(&sent.to_json()), sent);
    }

    #[test]
    fn what_is_no_error_becomes_a_bug_and_not_a_panic() {
        assert_eq!(from_json(&json!({"code": "RS-E9999"})).code, Code::Bug);
        assert_eq!(from_json(&json!(null)).code, Code::Bug);
    }

    #[test]
    fn text_and_json_say_the_same() {
        let error = Error::new(Code::Locked, "D is in use").why("pid 7 holds it").cure("stop it");
        let text = error.text("error");
        assert!(text.starts_with("error[RS-E0402] D is in use"));
        for key in ["what", "why", "cure"] {
            assert!(text.contains(error.to_json()[key].as_str().unwrap()));
        }
    }

    #[test]
    fn a_full_disk_is_exit_8() {
        let full = std::io::Error::from(std::io::ErrorKind::StorageFull);
        assert_eq!(Error::io("write", Path::new("/x"), full).code.exit(), 8);
    }
}
