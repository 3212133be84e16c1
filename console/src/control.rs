//! What the `bulkhead` command asks of a console: one JSON object a line, one line for an answer.
//!
//! The socket is the VM owner's: its directory says who may connect. It must never be reachable by the guest or by viewers.

use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::screen::Picture;

/// Longest request, its line's end included.
const MAX_LINE: usize = 64 << 10;

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum Request {
    /// The picture: [`Answer::Png`], and that many bytes.
    Screenshot {},
    /// Type a text; answered when its last key has been handed to the keyboard. The rest of it is dropped if whoever asked goes before.
    Type(String),
    /// Press keys together, such as `ctrl-alt-del`; the same holds.
    Key(String),
    /// Let one more browser in.
    Token {},
    /// What goes on.
    State {},
}

/// What is answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Answer<I> {
    /// So many bytes of a PNG file follow.
    Png(usize),
    /// It is done.
    Done {},
    /// What goes on.
    State(State),
    /// It was not done, and why.
    Error(String),
    /// How the web page is reached.
    #[serde(untagged)]
    Token(I),
}

/// What goes on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// Columns of the picture.
    pub width: u32,
    /// Its rows.
    pub height: u32,
    /// The guest shows something.
    pub on: bool,
    /// How many look.
    pub viewers: usize,
    /// The video device is there.
    pub video: bool,
    /// A driver in the guest listens to the keyboard.
    pub keyboard: bool,
    /// The same for the mouse.
    pub mouse: bool,
}

/// Why a connection is closed.
#[derive(Debug, Error)]
pub enum ControlEnd {
    /// Its owner has closed it.
    #[error("closed")]
    Closed,
    /// It broke.
    #[error("{0}")]
    Stream(#[from] io::Error),
}

/// A connection: one request after the other.
#[derive(Debug)]
pub struct Connection {
    stream: UnixStream,
    input: Vec<u8>,
    out: Vec<u8>,
    sent: usize,
    readable: bool,
    writable: bool,
    /// There is nobody at the other end any more.
    is_left: bool,
    /// What is typed for it, after which it is answered.
    ticket: Option<u64>,
}

impl Connection {
    /// Somebody has connected; non-blocking.
    pub fn new(stream: UnixStream) -> Connection {
        let (input, out) = (Vec::new(), Vec::new());
        Connection {
            stream,
            input,
            out,
            sent: 0,
            readable: true,
            writable: true,
            is_left: false,
            ticket: None,
        }
    }

    /// The descriptor to watch.
    pub fn fd(&self) -> RawFd {
        self.stream.as_raw_fd()
    }

    /// Something happened on it.
    pub fn wake(&mut self, readable: bool, writable: bool) {
        self.readable |= readable;
        self.writable |= writable;
    }

    /// Its owner has closed it, or died. Reading would not tell while something is typed for him: nothing is read then, so that he cannot
    /// send on and on. (Whoever only says that he has no more requests still waits for his answer.)
    pub fn hang_up(&mut self) {
        self.is_left = true;
    }

    /// What is being typed for it.
    pub fn ticket(&self) -> Option<u64> {
        self.ticket
    }

    /// Whether it has something to do without an event.
    pub fn is_ready(&self) -> bool {
        self.readable && self.is_free() || self.writable && !self.out.is_empty()
    }

    /// Whether what it has asked for has been done and told.
    fn is_free(&self) -> bool {
        self.ticket.is_none() && self.out.is_empty()
    }

    /// The next request, if there is one, or why it is none.
    pub fn turn(&mut self) -> Result<Option<Result<Request, String>>, ControlEnd> {
        if self.is_left {
            return Err(ControlEnd::Closed);
        }
        self.send()?;
        loop {
            if !self.is_free() {
                return Ok(None);
            }
            if let Some(end) = self.input.iter().position(|byte| *byte == b'\n') {
                let request = serde_json::from_slice(&self.input[..end]);
                self.input.drain(..=end);
                return Ok(Some(
                    request.map_err(|error| format!("not a request of this console's: {error}")),
                ));
            }
            if self.input.len() >= MAX_LINE {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "a request is too long").into());
            }
            if !self.readable {
                return Ok(None);
            }
            let mut chunk = [0; 4096];
            match self.stream.read(&mut chunk) {
                Ok(0) => return Err(ControlEnd::Closed),
                Ok(len) => self.input.extend_from_slice(&chunk[..len]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.readable = false,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// The answer follows when this has been typed.
    pub fn wait_for(&mut self, ticket: u64) {
        self.ticket = Some(ticket);
    }

    /// This has been typed, and the keyboard has it.
    pub fn typed(&mut self, ticket: u64) {
        if self.ticket == Some(ticket) {
            self.ticket = None;
            self.answer(&Answer::<()>::Done {}, &[]);
        }
    }

    /// Answers; `bytes` follow the line.
    pub fn answer<I: Serialize>(&mut self, answer: &Answer<I>, bytes: &[u8]) {
        // Nothing in an answer can fail to become JSON.
        self.out = serde_json::to_vec(answer).unwrap_or_default();
        self.out.push(b'\n');
        self.out.extend_from_slice(bytes);
        self.sent = 0;
    }

    /// Says why its owner is let go, for whom there is no place. He has just come, so there is room for it, unless he has gone again.
    pub fn refuse(&mut self) {
        let why = "as many commands as there is room for wait for this console already; try again when one of them has ended";
        self.answer(&Answer::<()>::Error(why.into()), &[]);
        let _ = self.send();
    }

    fn send(&mut self) -> Result<(), ControlEnd> {
        while self.writable && self.sent < self.out.len() {
            match self.stream.write(&self.out[self.sent..]) {
                Ok(0) => return Err(ControlEnd::Closed),
                Ok(sent) => self.sent += sent,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.writable = false,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        if self.sent == self.out.len() {
            self.out = Vec::new();
            self.sent = 0;
        }
        Ok(())
    }
}

/// A picture as a PNG file.
pub fn png(picture: &Picture) -> Result<Vec<u8>, png::EncodingError> {
    let (width, height) = picture.size();
    let mut file = Vec::new();
    let mut encoder = png::Encoder::new(&mut file, width, height);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    // Everybody waits while it is made.
    encoder.set_compression(png::Compression::Fast);
    let rows = picture.rows(0, height);
    let mut bytes = Vec::with_capacity(rows.len() * 3);
    for pixel in rows {
        let [_, red, green, blue] = pixel.to_be_bytes();
        bytes.extend_from_slice(&[red, green, blue]);
    }
    let mut writer = encoder.write_header()?;
    writer.write_image_data(&bytes)?;
    writer.finish()?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(answer: &Answer<u32>) -> String {
        serde_json::to_string(answer).unwrap()
    }

    #[test]
    fn requests_are_one_line_each() {
        let (mut peer, ours) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let mut connection = Connection::new(ours);
        assert!(connection.turn().unwrap().is_none());
        peer.write_all(b"{\"screenshot\":{}}\n{\"type\":\"a\\nb\"}\n{\"key\":3}\n{\"st").unwrap();
        connection.wake(true, false);
        assert_eq!(connection.turn().unwrap(), Some(Ok(Request::Screenshot {})));
        connection.wait_for(7);
        assert!(connection.turn().unwrap().is_none(), "one after the other");
        connection.typed(7);
        let next = connection.turn().unwrap();
        let mut line = [0; 12];
        peer.read_exact(&mut line).unwrap();
        assert_eq!(&line, b"{\"done\":{}}\n");
        assert_eq!(next, Some(Ok(Request::Type("a\nb".to_owned()))));
        assert!(connection.turn().unwrap().unwrap().is_err());
        assert!(connection.turn().unwrap().is_none());
        drop(peer);
        connection.wake(true, true);
        assert!(matches!(connection.turn(), Err(ControlEnd::Closed)));
    }

    #[test]
    fn who_goes_while_something_is_typed_for_him_is_not_waited_for() {
        let (mut peer, ours) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let mut connection = Connection::new(ours);
        peer.write_all(b"{\"key\":\"a\"}\n").unwrap();
        assert!(connection.turn().unwrap().is_some());
        connection.wait_for(3);
        // He has no more requests, and waits.
        peer.shutdown(std::net::Shutdown::Write).unwrap();
        connection.wake(true, true);
        assert!(connection.turn().unwrap().is_none());
        connection.hang_up();
        assert!(matches!(connection.turn(), Err(ControlEnd::Closed)));
        assert_eq!(connection.ticket(), Some(3));
    }

    #[test]
    fn a_request_without_end_is_an_end() {
        let (mut peer, ours) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let mut connection = Connection::new(ours);
        peer.write_all(&vec![b'x'; MAX_LINE]).unwrap();
        assert!(matches!(connection.turn(), Err(ControlEnd::Stream(_))));
    }

    #[test]
    fn answers_are_one_line() {
        assert_eq!(text(&Answer::Png(9)), r#"{"png":9}"#);
        assert_eq!(text(&Answer::Error("no".to_owned())), r#"{"error":"no"}"#);
        assert_eq!(text(&Answer::Token(4)), "4");
    }

    #[test]
    fn a_picture_becomes_a_file() {
        let picture = Picture::of(2, 1, vec![0xff11_2233, 0x0044_5566]);
        let file = png(&picture).unwrap();
        let mut reader = png::Decoder::new(io::Cursor::new(file)).read_info().unwrap();
        let mut bytes = vec![0; reader.output_buffer_size().unwrap()];
        reader.next_frame(&mut bytes).unwrap();
        assert_eq!(bytes, [0x11, 0x22, 0x33, 0x44, 0x55, 0x66]);
    }
}
