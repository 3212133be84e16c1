//! How a VM's console is asked for something: a line of JSON each way on a Unix socket in the VM's runtime directory.
//!
//! A guest may have taken the console over: what it answers is bounded, and shown without its control characters.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::device::{self, Error};
use crate::disk::shown;
use crate::runtime_dir::SCREEN_SOCKET;

/// Longest line that is read, in bytes.
const LONGEST_LINE: u64 = 1 << 20;
/// Largest picture as a file: 3840 x 2160 pixels that cannot be compressed, and some.
const LARGEST_PICTURE: u64 = 64 << 20;
/// How long the console may take to answer. Typing takes a few milliseconds a character; a guest that reads slowly takes longer.
const PATIENCE: Duration = Duration::from_secs(120);

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// The picture.
    Screenshot {},
    /// To type a text.
    Type(String),
    /// To press keys together and release them.
    Key(String),
    /// A web page.
    Token {},
    /// How things are.
    State {},
}

/// What is answered. Every console answers [`Request::State`]; what it says besides is for later builds to understand.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Reply {
    /// A picture of that many bytes follows.
    Png(u64),
    /// It was done.
    Done {},
    /// It was not, in a sentence.
    Error(String),
    /// How things are.
    State(State),
}

/// How things are.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct State {
    /// Of the picture, in pixels; 0: the guest shows none.
    pub width: u32,
    /// The same.
    pub height: u32,
    /// Whether the guest listens to the keyboard,
    pub keyboard: bool,
    /// and to the mouse.
    pub mouse: bool,
}

/// Where the web page is, and what lets one in, once.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Invitation {
    /// Letters and digits.
    pub token: String,
    /// Where.
    pub address: std::net::SocketAddr,
    /// Whether it is encrypted.
    #[serde(default)]
    pub https: bool,
}

impl Invitation {
    /// What a browser is given.
    fn url(&self) -> Option<String> {
        let scheme = if self.https { "https" } else { "http" };
        let is_token = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        let is_sound = !self.token.is_empty() && self.token.chars().all(is_token);
        let place = match self.address.ip().is_unspecified() {
            // It listens at all of this host's addresses.
            true => format!("{}:{}", host_name(), self.address.port()),
            false => self.address.to_string(),
        };
        is_sound.then(|| format!("{scheme}://{place}/?token={}", self.token))
    }
}

fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    if name.trim().is_empty() { "localhost".to_owned() } else { name.trim().to_owned() }
}

/// A connection to a VM's console.
#[derive(Debug)]
pub struct Client {
    vm: String,
    stream: BufReader<UnixStream>,
}

impl Client {
    /// Connects to the console of the VM `vm`, whose directory is in `base` unless systemd runs it.
    pub fn connect(base: &Path, vm: &str) -> Result<Self, Error> {
        let socket = device::find(base, vm)?.runtime().join(SCREEN_SOCKET);
        let connected = UnixStream::connect(&socket).and_then(|stream| {
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.set_write_timeout(Some(PATIENCE))?;
            Ok(stream)
        });
        match connected {
            Ok(stream) => Ok(Self { vm: vm.to_owned(), stream: BufReader::new(stream) }),
            Err(error) => Err(match error.kind() {
                ErrorKind::NotFound => {
                    Error::Failed(format!("VM {vm} has no screen: add a section [screen] to its spec"))
                }
                ErrorKind::PermissionDenied => Error::Forbidden { vm: vm.to_owned() },
                _ => Error::Failed(format!("cannot connect to the console of VM {vm}: {error}")),
            }),
        }
    }

    /// The picture, as a PNG file.
    pub fn screenshot(&mut self) -> Result<Vec<u8>, Error> {
        match self.ask(&Request::Screenshot {})? {
            Reply::Png(bytes) if bytes <= LARGEST_PICTURE => {
                let mut picture = Vec::new();
                self.stream
                    .by_ref()
                    .take(bytes)
                    .read_to_end(&mut picture)
                    .map_err(|error| self.lost(&error))?;
                if picture.len() as u64 == bytes { Ok(picture) } else { Err(self.gone()) }
            }
            _ => Err(self.strange()),
        }
    }

    /// Has something typed or pressed; returns when the last key's release has been handed to the keyboard.
    pub fn press(&mut self, request: &Request) -> Result<(), Error> {
        match self.ask(request)? {
            Reply::Done {} => Ok(()),
            _ => Err(self.strange()),
        }
    }

    /// How things are.
    pub fn state(&mut self) -> Result<State, Error> {
        match self.ask(&Request::State {})? {
            Reply::State(state) => Ok(state),
            _ => Err(self.strange()),
        }
    }

    /// The address of the web page; good for one browser.
    pub fn url(&mut self) -> Result<String, Error> {
        let line = self.line(&Request::Token {})?;
        if let Ok(Reply::Error(why)) = serde_json::from_str(&line) {
            return Err(self.refused(&why));
        }
        let invitation = serde_json::from_str::<Invitation>(&line).ok();
        invitation.and_then(|invitation| invitation.url()).ok_or_else(|| self.strange())
    }

    fn ask(&mut self, request: &Request) -> Result<Reply, Error> {
        let line = self.line(request)?;
        match serde_json::from_str(&line) {
            Ok(Reply::Error(why)) => Err(self.refused(&why)),
            Ok(reply) => Ok(reply),
            Err(_) => Err(self.strange()),
        }
    }

    fn line(&mut self, request: &Request) -> Result<String, Error> {
        let mut line = serde_json::to_string(request).map_err(|error| Error::Failed(error.to_string()))?;
        line.push('\n');
        self.stream.get_mut().write_all(line.as_bytes()).map_err(|error| self.lost(&error))?;
        let mut answer = String::new();
        let read = self.stream.by_ref().take(LONGEST_LINE).read_line(&mut answer);
        read.map_err(|error| self.lost(&error))?;
        if answer.ends_with('\n') { Ok(answer) } else { Err(self.gone()) }
    }

    fn refused(&self, why: &str) -> Error {
        Error::Failed(format!("{}: {}", self.vm, shown(why)))
    }

    fn lost(&self, error: &std::io::Error) -> Error {
        match error.kind() {
            ErrorKind::WouldBlock | ErrorKind::TimedOut => {
                Error::Failed(format!("the console of VM {} does not answer", self.vm))
            }
            ErrorKind::BrokenPipe | ErrorKind::ConnectionReset => self.gone(),
            _ => Error::Failed(format!("cannot talk to the console of VM {}: {error}", self.vm)),
        }
    }

    fn gone(&self) -> Error {
        Error::Failed(format!(
            "the console of VM {} ended before it answered; another one is starting: try again",
            self.vm
        ))
    }

    fn strange(&self) -> Error {
        Error::Failed(format!(
            "the console of VM {} answered something else than was asked; is bulkhead of the same release?",
            self.vm
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A console that answers each line with the next of `answers`.
    fn console(answers: &'static [&'static [u8]]) -> (Client, std::thread::JoinHandle<Vec<String>>) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let serve = move || {
            let mut stream = BufReader::new(theirs);
            let mut asked = Vec::new();
            for answer in answers {
                let mut line = String::new();
                stream.read_line(&mut line).unwrap();
                asked.push(line);
                stream.get_mut().write_all(answer).unwrap();
            }
            asked
        };
        (Client { vm: "debian".into(), stream: BufReader::new(ours) }, std::thread::spawn(serve))
    }

    #[test]
    fn what_is_asked_is_a_line_and_so_is_the_answer() {
        let (mut client, served) = console(&[
            b"{\"png\":3}\nPNG",
            b"{\"done\":{}}\n",
            b"{\"done\":{}}\n",
            b"{\"state\":{\"width\":800,\"height\":600,\"viewers\":[],\"keyboard\":true,\"mouse\":false,\"video\":true}}\n",
            b"{\"token\":\"a-Z_9\",\"address\":\"127.0.0.1:4000\",\"https\":false}\n",
            b"{\"token\":\"a\",\"address\":\"0.0.0.0:443\",\"https\":true}\n",
        ]);
        assert_eq!(client.screenshot().unwrap(), b"PNG");
        client.press(&Request::Type("a\"b\n".into())).unwrap();
        client.press(&Request::Key("ctrl-alt-del".into())).unwrap();
        let state = client.state().unwrap();
        assert_eq!((state.width, state.height, state.keyboard, state.mouse), (800, 600, true, false));
        assert_eq!(client.url().unwrap(), "http://127.0.0.1:4000/?token=a-Z_9");
        assert_eq!(client.url().unwrap(), format!("https://{}:443/?token=a", host_name()));
        assert_eq!(
            served.join().unwrap(),
            [
                "{\"screenshot\":{}}\n",
                "{\"type\":\"a\\\"b\\n\"}\n",
                "{\"key\":\"ctrl-alt-del\"}\n",
                "{\"state\":{}}\n",
                "{\"token\":{}}\n",
                "{\"token\":{}}\n"
            ]
        );
    }

    #[test]
    fn a_console_that_refuses_dies_or_lies_is_told_apart() {
        let (mut client, _served) = console(&[
            b"{\"error\":\"no\\u001b[2Jpicture\"}\n",
            b"{\"done\":{}}\n",
            b"{\"png\":99999999999}\n",
            b"{\"token\":\"x\\n/../y\",\"address\":\"127.0.0.1:4000\"}\n",
            b"{\"png\":10}\nshort",
        ]);
        let mut failed = || client.screenshot().unwrap_err().to_string();
        let refused = failed();
        assert!(refused.starts_with("debian: no") && !refused.contains('\u{1b}'), "{refused}");
        assert!(failed().contains("something else"));
        assert!(failed().contains("something else"));
        assert!(client.url().unwrap_err().to_string().contains("something else"));
        assert!(client.screenshot().unwrap_err().to_string().contains("ended before it answered"));
    }
}
