//! What a supervisor gives a console, and people who come to it.
#![allow(dead_code, clippy::unwrap_used, missing_docs, reason = "each test program uses its part")]

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::PathBuf;
use std::time::Duration;

use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, bind, socket, socketpair};
use sandbox::spawn::{self, Child};

pub const PROGRAM: &str = env!("CARGO_BIN_EXE_bulkhead-console");

/// What outlives consoles.
pub struct Seat {
    pub directory: PathBuf,
    pub pairs: [(OwnedFd, OwnedFd); 3],
    rfb: UnixListener,
    control: UnixListener,
    web: OwnedFd,
    secret: OwnedFd,
}

/// A console, and what it says to whoever supervises it.
pub struct Running {
    pub child: Child,
    _notify: UnixDatagram,
}

impl Seat {
    pub fn new(test: &str) -> Self {
        let directory = std::env::temp_dir().join(format!("bulkhead-console-{}-{test}", std::process::id()));
        let _ = std::fs::remove_dir_all(&directory);
        std::fs::create_dir_all(directory.join("novnc")).unwrap();
        std::fs::write(directory.join("novnc/vnc.html"), "<html>noVNC</html>").unwrap();
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let pair = || socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags).unwrap();
        let web = socket(AddressFamily::Inet, SockType::Stream, flags, None).unwrap();
        bind(web.as_raw_fd(), &SockaddrIn::new(127, 0, 0, 1, 0)).unwrap();
        let mut secret = File::from(memfd_create(c"secret", MFdFlags::MFD_CLOEXEC).unwrap());
        secret.write_all(&[7; 32]).unwrap();
        let listen = |name: &str| {
            let listener = UnixListener::bind(directory.join(name)).unwrap();
            listener.set_nonblocking(true).unwrap();
            listener
        };
        Self {
            pairs: [pair(), pair(), pair()],
            rfb: listen("vnc"),
            control: listen("control"),
            web,
            secret: secret.into(),
            directory,
        }
    }

    /// Starts a console and waits until it serves.
    pub fn start(&self) -> Running {
        self.start_with(spawn::Command::new(PROGRAM), &[])
    }

    /// The same by another program, with more arguments.
    pub fn start_with(&self, command: spawn::Command<'_>, more: &[&str]) -> Running {
        let (ours, theirs) = UnixDatagram::pair().unwrap();
        let novnc = self.directory.join("novnc").display().to_string();
        let mut command = command
            .args(["--device", "console", "--name", "test", "--novnc", &novnc])
            .args(["--notify-fd", "4", "--watchdog-usec", "3000000"])
            .args(more)
            .fd(theirs.as_fd(), 4);
        let given = [
            ("--video-fd", self.pairs[0].1.as_fd()),
            ("--keyboard-fd", self.pairs[1].1.as_fd()),
            ("--mouse-fd", self.pairs[2].1.as_fd()),
            ("--rfb-fd", self.rfb.as_fd()),
            ("--control-fd", self.control.as_fd()),
            ("--web-fd", self.web.as_fd()),
            ("--secret-fd", self.secret.as_fd()),
        ];
        for (number, (option, fd)) in (5..).zip(given) {
            command = command.args([option, &number.to_string()]).fd(fd, number);
        }
        let running = Running { child: command.spawn().unwrap(), _notify: ours };
        drop(theirs);
        running._notify.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let mut message = [0; 512];
        loop {
            let len = running._notify.recv(&mut message).expect("it says that it serves");
            if String::from_utf8_lossy(&message[..len]).contains("STATUS=serving") {
                return running;
            }
        }
    }

    pub fn connect(&self, name: &str) -> BufReader<UnixStream> {
        let stream = UnixStream::connect(self.directory.join(name)).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        BufReader::new(stream)
    }

    pub fn ask(&self, request: &str) -> serde_json::Value {
        let mut control = self.connect("control");
        control.get_mut().write_all(format!("{request}\n").as_bytes()).unwrap();
        let mut line = String::new();
        control.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{request}: {line:?}: {error}"))
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The head of the answer.
pub fn http(stream: &mut BufReader<TcpStream>, path: &str, more: &str) -> String {
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\n{more}\r\n");
    stream.get_mut().write_all(request.as_bytes()).unwrap();
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        assert!(stream.read_line(&mut head).unwrap() > 0, "{head}");
    }
    let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: ")).unwrap_or("0");
    let mut body = vec![0; length.parse().unwrap()];
    stream.read_exact(&mut body).unwrap();
    head
}

pub fn browser(address: &str) -> BufReader<TcpStream> {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    BufReader::new(stream)
}

pub const UPGRADE: &str = "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";

/// A viewer behind a WebSocket: what RFB begins with, in a frame.
pub fn greeted(address: &str, session: &str, cookie: &str) {
    let mut browser = browser(address);
    let head = http(&mut browser, &format!("/{session}/websockify"), &format!("{UPGRADE}{cookie}"));
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    let mut frame = [0; 14];
    browser.read_exact(&mut frame).unwrap();
    assert_eq!(&frame, b"\x82\x0cRFB 003.008\n");
}
