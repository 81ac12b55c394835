//! The control socket of a datatrust: one JSON object per line, in both directions.
//!
//! A request is one line. The answer is any number of `{"progress":…}` lines and then one
//! `{"ok":…}` or `{"error":…}`, whose error object is the one the command line prints.

use std::io::{BufRead, BufReader, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::error::{self, Code, Error, Result};

/// A request to a running datatrust.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(tag = "op", rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// Everything that fits one screen.
    Status,
    /// Hash, import and offer a file or folder; reports progress in bytes.
    ListingAdd {
        /// Absolute path of the source.
        path: PathBuf,
        /// Serve it from there instead of copying it.
        in_place: bool,
    },
    /// Listings and candidates.
    ListingLs,
    /// One listing in full.
    ListingShow {
        /// Infohash or its first digits.
        infohash: String,
    },
    /// Sign a removal.
    ListingRm {
        /// Infohash or its first digits.
        infohash: String,
    },
    /// The info dict and the `.torrent` file of a listing, in hex.
    Metainfo {
        /// Infohash or its first digits.
        infohash: String,
    },
    /// Registered datatrusts.
    MemberLs,
    /// Vote for an admission.
    MemberAdmit {
        /// Key or its first digits.
        member: String,
    },
    /// Serve payload, or stop serving it and go on fetching.
    Serving {
        /// Whether to serve.
        on: bool,
    },
    /// Change caps on payload, and tell all that are in force.
    Limit {
        /// What is capped.
        scope: Limited,
        /// Bytes per second sent; 0 lifts the cap, `None` leaves it.
        up: Option<u64>,
        /// Bytes per second received, likewise.
        down: Option<u64>,
    },
    /// The app hash after a height.
    AppHash {
        /// The height.
        height: u64,
    },
    /// Stop in order.
    Shutdown,
}

/// What a cap is on.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Limited {
    /// The datatrust.
    All,
    /// All members of the market together.
    Members,
    /// Everybody else together.
    Others,
    /// One listing.
    Listing {
        /// Infohash or its first digits.
        infohash: String,
    },
}

/// Longest line in bytes: info dict and piece layers of a listing of several TiB, in hex.
const LINE_LEN_MAX: u64 = 256 << 20;

/// A path to `name` in `folder` that fits a socket address, which holds only 108 bytes. The
/// descriptor must live as long as the path is used.
fn short_path(folder: &Path, name: &str) -> Result<(OwnedFd, PathBuf)> {
    let fd =
        rustix::fs::open(folder, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .map_err(|error| Error::io("open", folder, error.into()))?;
    let path = PathBuf::from(format!("/proc/self/fd/{}/{name}", fd.as_raw_fd()));
    Ok((fd, path))
}

fn split(socket: &Path) -> Result<(&Path, &str)> {
    let name = socket.file_name().and_then(|name| name.to_str());
    socket.parent().zip(name).ok_or_else(|| Error::bug("a control socket without a folder"))
}

/// Listens at `socket`, replacing what a killed process left. Call it while holding the folder's
/// lock: only then is what lies there surely dead.
///
/// # Errors
/// I/O errors.
pub fn listen(socket: &Path) -> Result<UnixListener> {
    let (folder, name) = split(socket)?;
    let (_fd, path) = short_path(folder, name)?;
    let _ = std::fs::remove_file(socket);
    let listener =
        UnixListener::bind(&path).map_err(|error| Error::io("listen on", socket, error))?;
    std::fs::set_permissions(socket, std::fs::Permissions::from_mode(0o600))
        .map_err(|error| Error::io("protect", socket, error))?;
    Ok(listener)
}

/// Reads one line and parses it.
///
/// # Errors
/// [`Code::BadAnswer`] when it is too long or no JSON; [`Code::Unreachable`] when the other side
/// has gone.
pub fn read_line<T: for<'a> Deserialize<'a>>(from: &mut impl BufRead) -> Result<Option<T>> {
    let mut line = Vec::new();
    let count =
        std::io::Read::take(from, LINE_LEN_MAX).read_until(b'\n', &mut line).map_err(|error| {
            Error::new(Code::Unreachable, "the other side does not answer").why(error.to_string())
        })?;
    if count == 0 {
        return Ok(None);
    }
    serde_json::from_slice(&line).map(Some).map_err(|error| {
        Error::new(Code::BadAnswer, "a line on the control socket is not understood")
            .why(error.to_string())
            .cure("use the same version of ringseed on both sides")
    })
}

/// Writes one line.
///
/// # Errors
/// The I/O error as it is: the other side has gone.
pub fn write_line(to: &mut impl Write, value: &Value) -> std::io::Result<()> {
    let mut line = value.to_string();
    line.push('\n');
    to.write_all(line.as_bytes())
}

/// A connection to a datatrust's control socket.
#[derive(Debug)]
pub struct Client {
    stream: BufReader<UnixStream>,
    folder: PathBuf,
}

impl Client {
    /// Connects to the datatrust in `folder`.
    ///
    /// # Errors
    /// [`Code::Unreachable`] when none runs there.
    pub fn connect(folder: &Path) -> Result<Client> {
        let not_running = |why: String| {
            Error::new(
                Code::Unreachable,
                format!("no datatrust is running in {}", folder.display()),
            )
            .why(why)
            .cure(format!("ringseed start --dir {}", folder.display()))
        };
        let (_fd, path) =
            short_path(folder, "control.sock").map_err(|error| not_running(error.to_string()))?;
        let stream = UnixStream::connect(&path).map_err(|error| not_running(error.to_string()))?;
        stream
            .set_read_timeout(Some(Duration::from_secs(3600)))
            .map_err(|error| Error::io("prepare", &path, error))?;
        Ok(Client { stream: BufReader::new(stream), folder: folder.to_owned() })
    }

    /// Asks and waits for the answer.
    ///
    /// # Errors
    /// What the datatrust answered, or [`Code::Unreachable`].
    pub fn ask(&mut self, request: &Request) -> Result<Value> {
        self.ask_with(request, |_, _| {})
    }

    /// As [`Client::ask`], and calls `progress(done, total)` as it is reported.
    ///
    /// # Errors
    /// As [`Client::ask`].
    pub fn ask_with(
        &mut self,
        request: &Request,
        mut progress: impl FnMut(u64, u64),
    ) -> Result<Value> {
        let gone = |folder: &Path, why: String| {
            Error::new(
                Code::Unreachable,
                format!("the datatrust in {} does not answer", folder.display()),
            )
            .why(why)
        };
        let request = serde_json::to_value(request)
            .map_err(|error| Error::bug(format!("a request that is no JSON: {error}")))?;
        write_line(self.stream.get_mut(), &request)
            .map_err(|error| gone(&self.folder, error.to_string()))?;
        loop {
            let Some(answer) = read_line::<Value>(&mut self.stream)? else {
                return Err(gone(&self.folder, "it closed the connection".to_owned()));
            };
            if let Some(step) = answer.get("progress") {
                progress(step["done"].as_u64().unwrap_or(0), step["total"].as_u64().unwrap_or(0));
            } else if let Some(ok) = answer.get("ok") {
                return Ok(ok.clone());
            } else {
                return Err(error::from_json(&answer["error"]));
            }
        }
    }
}

/// Connects, asks once, hangs up.
///
/// # Errors
/// As [`Client::connect`] and [`Client::ask`].
pub fn ask(folder: &Path, request: &Request) -> Result<Value> {
    Client::connect(folder)?.ask(request)
}

/// The last line of an answer.
pub fn answer(result: Result<Value>) -> Value {
    match result {
        Ok(value) => json!({ "ok": value }),
        Err(error) => json!({ "error": error.to_json() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_one_line_and_reads_back() {
        for request in [
            Request::Status,
            Request::ListingAdd { path: "/a b\n".into(), in_place: true },
            Request::Limit {
                scope: Limited::Listing { infohash: "5a".into() },
                up: None,
                down: Some(0),
            },
            Request::AppHash { height: 7 },
        ] {
            let mut line = Vec::new();
            write_line(&mut line, &serde_json::to_value(&request).unwrap()).unwrap();
            assert_eq!(line.iter().filter(|byte| **byte == b'\n').count(), 1);
            assert_eq!(read_line::<Request>(&mut line.as_slice()).unwrap(), Some(request));
        }
        assert_eq!(read_line::<Request>(&mut &b""[..]).unwrap(), None);
        let unknown = read_line::<Request>(&mut &b"{\"op\":\"reboot\"}\n"[..]);
        assert_eq!(unknown.unwrap_err().code, Code::BadAnswer);
    }

    #[test]
    fn a_socket_works_below_a_path_longer_than_an_address() {
        let base = std::env::temp_dir().join(format!("rs-control-{}", std::process::id()));
        let folder = base.join("x".repeat(90)).join("y".repeat(90));
        std::fs::create_dir_all(&folder).unwrap();
        assert_eq!(Client::connect(&folder).unwrap_err().code, Code::Unreachable);
        let listener = listen(&folder.join("control.sock")).unwrap();
        let mode = std::fs::metadata(folder.join("control.sock")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let server = std::thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            let mut stream = BufReader::new(stream);
            while let Some(request) = read_line::<Request>(&mut stream).unwrap() {
                let step = json!({"progress": {"done": 1, "total": 2}});
                write_line(stream.get_mut(), &step).unwrap();
                let result = match request {
                    Request::Status => Ok(json!({"height": 3})),
                    _ => Err(Error::new(Code::Refused, "not yours")),
                };
                write_line(stream.get_mut(), &answer(result)).unwrap();
            }
        });
        let mut client = Client::connect(&folder).unwrap();
        let mut seen = Vec::new();
        let status =
            client.ask_with(&Request::Status, |done, total| seen.push((done, total))).unwrap();
        assert_eq!((status["height"].as_u64(), seen), (Some(3), vec![(1, 2)]));
        let refused = client.ask(&Request::ListingRm { infohash: "ab".into() }).unwrap_err();
        assert_eq!(refused.code, Code::Refused);
        drop(client);
        server.join().unwrap();
        std::fs::remove_dir_all(base).unwrap();
    }
}
