//! The real program in its real compartment.

#![allow(dead_code, reason = "each test file uses its part")]
#![allow(unsafe_code, reason = "descriptors are handed over between fork and exec")]

use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use vsp::ipc::socket::Peer;

/// The program.
pub const PROGRAM: &str = env!("CARGO_BIN_EXE_vsp-hid");
/// How long anything may take.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// A running program; killed when the test is over.
pub struct Process(Child);

impl Process {
    /// Starts it with its ends of the sockets.
    pub fn start(socket: Peer, seat: &OwnedFd, arguments: &[&str]) -> Process {
        Process::start_by(Command::new(PROGRAM), socket, seat, arguments)
    }

    /// The same, by another program that takes it as its last argument.
    pub fn start_by(mut command: Command, socket: Peer, seat: &OwnedFd, arguments: &[&str]) -> Process {
        let socket = OwnedFd::from(socket);
        let numbers = [socket.as_raw_fd(), seat.as_raw_fd()];
        command.args(["--device", "hid", "--log-level", "error"]);
        command.args(["--core-fd", &numbers[0].to_string(), "--seat-fd", &numbers[1].to_string()]);
        command.args(arguments).stdin(Stdio::null());
        // SAFETY: between fork and exec only an async-signal-safe call is made.
        unsafe {
            command.pre_exec(move || {
                for number in numbers {
                    if libc::fcntl(number, libc::F_SETFD, 0) != 0 {
                        return Err(std::io::Error::last_os_error());
                    }
                }
                Ok(())
            });
        }
        Process(command.spawn().unwrap())
    }

    /// Whether it has ended.
    pub fn is_dead(&mut self) -> bool {
        self.0.try_wait().unwrap().is_some()
    }

    /// Ends it by SIGKILL, and waits until it is gone.
    pub fn kill(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }

    /// Waits until it ends.
    pub fn end(&mut self) -> ExitStatus {
        let start = Instant::now();
        while !self.is_dead() {
            assert!(start.elapsed() < PATIENCE, "it does not end");
            std::thread::sleep(Duration::from_micros(100));
        }
        self.0.wait().unwrap()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
