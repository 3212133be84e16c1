//! The serial console: a 16550A whose output goes to a terminal or to whoever is connected to a
//! socket, and whose input comes from there.

use std::{
    collections::VecDeque,
    io::Write,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use nix::{errno::Errno, sys::eventfd::EventFd};
use vm_superio::{Serial, Trigger, serial::NoEvents};

/// Input that waits for the guest to read it, in bytes; what comes beyond it is dropped, as a
/// serial line does.
const INPUT_MAX: usize = 64 * 1024;

/// Where the guest's output goes.
#[derive(Debug)]
pub enum Sink {
    /// A terminal, pipe or file. Written to in full.
    File(OwnedFd),
    /// The one client of a socket, if there is one. Output that it does not take at once is lost.
    Client(Option<OwnedFd>),
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        match self {
            Sink::File(fd) => {
                let mut rest = bytes;
                while !rest.is_empty() {
                    match nix::unistd::write(&*fd, rest) {
                        Ok(n) => rest = &rest[n..],
                        Err(Errno::EINTR) => {}
                        Err(Errno::EAGAIN) => wait_writable(fd.as_fd()),
                        // A terminal that has gone must not stop the guest.
                        Err(_) => break,
                    }
                }
            }
            Sink::Client(client) => {
                if let Some(fd) = client {
                    match nix::unistd::write(&*fd, bytes) {
                        Ok(_) | Err(Errno::EAGAIN | Errno::EINTR) => {}
                        Err(_) => *client = None,
                    }
                }
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn wait_writable(fd: BorrowedFd<'_>) {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    let _ = poll(&mut [PollFd::new(fd, PollFlags::POLLOUT)], PollTimeout::NONE);
}

/// Raises the serial port's interrupt line.
#[derive(Debug)]
struct Line(Arc<EventFd>);

impl Trigger for Line {
    type E = Errno;

    fn trigger(&self) -> Result<(), Errno> {
        self.0.write(1).map(|_| ())
    }
}

struct Port {
    uart: Serial<Line, NoEvents, Sink>,
    waiting: VecDeque<u8>,
}

/// The console, shared by the VPs (registers) and the main thread (input, clients).
pub struct Console {
    port: Mutex<Port>,
    irq: Arc<EventFd>,
}

impl std::fmt::Debug for Console {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Console").finish_non_exhaustive()
    }
}

impl Console {
    /// A console that writes to `sink` and interrupts through `irq`.
    pub fn new(sink: Sink, irq: Arc<EventFd>) -> Self {
        let uart = Serial::new(Line(Arc::clone(&irq)), sink);
        Self { port: Mutex::new(Port { uart, waiting: VecDeque::new() }), irq }
    }

    fn lock(&self) -> MutexGuard<'_, Port> {
        self.port.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The sink's descriptor.
    pub fn descriptor(&self) -> Option<RawFd> {
        match self.lock().uart.writer() {
            Sink::File(fd) => Some(fd.as_raw_fd()),
            Sink::Client(client) => client.as_ref().map(AsRawFd::as_raw_fd),
        }
    }

    /// The guest writes a register.
    pub fn write(&self, register: u8, data: &[u8]) {
        let mut port = self.lock();
        for &byte in data {
            // The only errors are those of the sink and the eventfd, neither of which is the guest's business.
            let _ = port.uart.write(register, byte);
        }
    }

    /// The guest reads a register.
    pub fn read(&self, register: u8, data: &mut [u8]) {
        let mut port = self.lock();
        for byte in data {
            *byte = port.uart.read(register);
        }
        port.refill();
    }

    /// Somebody typed.
    pub fn input(&self, bytes: &[u8]) {
        let mut port = self.lock();
        let room = INPUT_MAX - port.waiting.len();
        port.waiting.extend(&bytes[..bytes.len().min(room)]);
        port.refill();
    }

    /// Another client takes the socket console over.
    pub fn set_client(&self, client: Option<OwnedFd>) {
        if let Sink::Client(now) = self.lock().uart.writer_mut() {
            *now = client;
        }
    }

    /// The registers of a guest that has not started yet.
    pub fn reset(&self) {
        let mut port = self.lock();
        let sink = std::mem::replace(port.uart.writer_mut(), Sink::Client(None));
        port.uart = Serial::new(Line(Arc::clone(&self.irq)), sink);
        port.waiting.clear();
    }
}

impl Port {
    fn refill(&mut self) {
        let n = self.uart.fifo_capacity().min(self.waiting.len());
        if n > 0 {
            let bytes: Vec<u8> = self.waiting.drain(..n).collect();
            // In loopback mode the UART takes no input; what was typed is lost as on a real line.
            let _ = self.uart.enqueue_raw_bytes(&bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn input_beyond_the_fifo_waits() {
        let (_reader, writer) = nix::unistd::pipe().unwrap();
        let console = Console::new(Sink::File(writer), Arc::new(EventFd::new().unwrap()));
        let typed: Vec<u8> = (0..=255).collect();
        console.input(&typed);
        let mut seen = vec![0; 256];
        for byte in &mut seen {
            console.read(0, std::slice::from_mut(byte));
        }
        assert_eq!(seen, typed);
    }

    #[test]
    fn output_reaches_the_sink_and_a_dead_sink_harms_nobody() {
        let (reader, writer) = nix::unistd::pipe().unwrap();
        let console = Console::new(Sink::File(writer), Arc::new(EventFd::new().unwrap()));
        console.write(0, b"hello");
        let mut seen = [0; 5];
        nix::unistd::read(&reader, &mut seen).unwrap();
        assert_eq!(&seen, b"hello");
        let console = Console::new(Sink::Client(None), Arc::new(EventFd::new().unwrap()));
        console.write(0, b"nobody listens");
    }
}
