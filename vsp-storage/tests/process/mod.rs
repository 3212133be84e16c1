//! The real program in its real compartment.

#![allow(dead_code, clippy::unwrap_used, reason = "each test file uses its part; tests may panic")]
#![allow(unsafe_code, reason = "a descriptor is handed over between fork and exec")]

use std::io::Read;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use vsp::ipc::socket::Peer;

/// The program.
pub const PROGRAM: &str = env!("CARGO_BIN_EXE_vsp-storage");

/// A running program; killed when the test is over.
pub struct Storage(Child);

impl Storage {
    /// Starts it with one disk; it has said hello, or will have.
    pub fn start(socket: Peer, disk: &str, arguments: &[String]) -> Storage {
        Storage::spawn(socket, disk, arguments, Stdio::inherit())
    }

    /// The same, for [`Storage::last_words`].
    pub fn heard(socket: Peer, disk: &str) -> Storage {
        Storage::spawn(socket, disk, &[], Stdio::piped())
    }

    fn spawn(socket: Peer, disk: &str, arguments: &[String], errors: Stdio) -> Storage {
        let fd = OwnedFd::from(socket);
        let number = fd.as_raw_fd();
        let mut command = Command::new(PROGRAM);
        command.args(["--device", "disk0", "--log-level", "error", "--core-fd", &number.to_string()]);
        command.args(["--disk", disk]).args(arguments);
        // SAFETY: between fork and exec only an async-signal-safe call is made.
        unsafe {
            command.pre_exec(move || match libc::fcntl(number, libc::F_SETFD, 0) {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            });
        }
        Storage(command.stderr(errors).spawn().unwrap())
    }

    /// Ends it by SIGKILL, and waits until it is gone.
    pub fn kill(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }

    /// Whether it has ended.
    pub fn is_dead(&mut self) -> bool {
        self.0.try_wait().unwrap().is_some()
    }

    /// What it has said by the time it ends, which it does by itself.
    pub fn last_words(&mut self) -> String {
        let mut words = String::new();
        self.0.stderr.as_mut().unwrap().read_to_string(&mut words).unwrap();
        words
    }

    /// Waits until it ends by itself.
    pub fn wait(&mut self) -> ExitStatus {
        let start = Instant::now();
        while !self.is_dead() {
            assert!(start.elapsed() < Duration::from_secs(20), "it does not end");
            std::thread::sleep(Duration::from_micros(100));
        }
        self.0.wait().unwrap()
    }
}

impl Drop for Storage {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
