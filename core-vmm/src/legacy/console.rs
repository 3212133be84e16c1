//! The serial console: a 16550A between the guest and whoever sits at the terminal.
//!
//! VPs only touch memory here: what the guest prints waits in a bounded queue until the main
//! thread has written it out, so that a slow terminal can hold up a VP (as flow control on a real line would)
//! but never the main thread, and never a VP that is to stop.

use std::{
    collections::VecDeque,
    io::Write,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use nix::{errno::Errno, sys::eventfd::EventFd};
use vm_superio::{Serial, Trigger, serial::NoEvents};

/// Input that waits for the guest to read it, in bytes; what comes beyond it is dropped, as a
/// serial line does.
const INPUT_MAX: usize = 64 * 1024;
/// Output that waits to be written, in bytes. Beyond it the guest waits, or loses output (see [`Overflow`]).
const OUTPUT_MAX: usize = 64 * 1024;
/// How long an unfinished line waits for its rest: a guest prints byte by byte.
const LINE_DELAY: Duration = Duration::from_millis(2);

/// What happens when nobody takes the guest's output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Overflow {
    /// The VP that prints waits: a terminal or a pipe.
    Wait,
    /// Output is lost: a socket, whose client may come and go.
    Drop,
}

/// Whether there is output to write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Output {
    /// Nothing.
    None,
    /// An unfinished line, better written at this time.
    At(Instant),
    /// Now.
    Now,
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

/// What the guest has printed.
#[derive(Debug, Default)]
struct Outbox {
    bytes: VecDeque<u8>,
    /// When the oldest byte came.
    since: Option<Instant>,
    lines: usize,
}

impl Write for Outbox {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let room = (2 * OUTPUT_MAX).saturating_sub(self.bytes.len());
        self.bytes.extend(&bytes[..bytes.len().min(room)]);
        self.lines += bytes.iter().filter(|b| **b == b'\n').count();
        self.since.get_or_insert_with(Instant::now);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

struct Port {
    uart: Serial<Line, NoEvents, Outbox>,
    waiting: VecDeque<u8>,
}

/// The console, shared by the VPs (registers) and the main thread (terminal).
pub struct Console {
    port: Mutex<Port>,
    /// The queue has been emptied.
    room: Condvar,
    overflow: Overflow,
    stopping: AtomicBool,
    irq: Arc<EventFd>,
    /// Wakes the main thread.
    wake: Arc<EventFd>,
}

impl std::fmt::Debug for Console {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Console").finish_non_exhaustive()
    }
}

impl Console {
    /// A console that interrupts the guest through `irq` and calls the main thread through `wake`.
    pub fn new(overflow: Overflow, irq: Arc<EventFd>, wake: Arc<EventFd>) -> Self {
        let uart = Serial::new(Line(Arc::clone(&irq)), Outbox::default());
        let port = Mutex::new(Port { uart, waiting: VecDeque::new() });
        Self { port, room: Condvar::new(), overflow, stopping: AtomicBool::new(false), irq, wake }
    }

    fn lock(&self) -> MutexGuard<'_, Port> {
        self.port.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The guest writes a register.
    pub fn write(&self, register: u8, data: &[u8]) {
        let mut port = self.lock();
        let before = port.uart.writer().bytes.len();
        let lines = port.uart.writer().lines;
        for &byte in data {
            // The only error is that of the eventfd, which is not the guest's business.
            let _ = port.uart.write(register, byte);
        }
        let outbox = port.uart.writer();
        let ring = outbox.bytes.len() > before && (before == 0 || outbox.lines > lines);
        if ring {
            let _ = self.wake.write(1);
        }
        if self.overflow == Overflow::Wait {
            let full = |port: &mut Port| {
                port.uart.writer().bytes.len() > OUTPUT_MAX && !self.stopping.load(Ordering::Acquire)
            };
            drop(self.room.wait_while(port, full));
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

    /// Whether there is output to write.
    pub fn output(&self) -> Output {
        let port = self.lock();
        let outbox = port.uart.writer();
        match outbox.since {
            Some(since) if outbox.lines == 0 && since.elapsed() < LINE_DELAY => {
                Output::At(since + LINE_DELAY)
            }
            Some(_) => Output::Now,
            None => Output::None,
        }
    }

    /// Takes up to `max` bytes of output to write.
    pub fn take_output(&self, max: usize) -> Vec<u8> {
        let mut port = self.lock();
        let outbox = port.uart.writer_mut();
        let n = outbox.bytes.len().min(max);
        let taken: Vec<u8> = outbox.bytes.drain(..n).collect();
        outbox.lines -= taken.iter().filter(|b| **b == b'\n').count().min(outbox.lines);
        if outbox.bytes.is_empty() {
            (outbox.since, outbox.lines) = (None, 0);
        }
        drop(port);
        self.room.notify_all();
        taken
    }

    /// VPs are to stop: none may wait here any more. [`Self::reset`] ends that.
    pub fn release(&self) {
        self.stopping.store(true, Ordering::Release);
        // A VP is either before its look at the flag, and holds the lock, or asleep.
        drop(self.lock());
        self.room.notify_all();
    }

    /// The registers of a guest that has not started yet. Output that waits stays.
    pub fn reset(&self) {
        let mut port = self.lock();
        let outbox = std::mem::take(port.uart.writer_mut());
        port.uart = Serial::new(Line(Arc::clone(&self.irq)), outbox);
        port.waiting.clear();
        self.stopping.store(false, Ordering::Release);
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

    fn console(overflow: Overflow) -> Arc<Console> {
        let bell = || Arc::new(EventFd::new().unwrap());
        Arc::new(Console::new(overflow, bell(), bell()))
    }

    #[test]
    fn input_beyond_the_fifo_waits() {
        let console = console(Overflow::Wait);
        let typed: Vec<u8> = (0..=255).collect();
        console.input(&typed);
        let mut seen = vec![0; 256];
        for byte in &mut seen {
            console.read(0, std::slice::from_mut(byte));
        }
        assert_eq!(seen, typed);
    }

    #[test]
    fn a_line_is_ready_at_once_and_a_prompt_soon() {
        let console = console(Overflow::Wait);
        assert_eq!(console.output(), Output::None);
        console.write(0, b"login: ");
        assert!(!matches!(console.output(), Output::None));
        std::thread::sleep(LINE_DELAY);
        assert_eq!(console.output(), Output::Now);
        assert_eq!(console.take_output(100), b"login: ");
        console.write(0, b"one\ntwo");
        assert_eq!(console.output(), Output::Now);
        assert_eq!(console.take_output(4), b"one\n");
        assert_eq!(console.take_output(100), b"two");
        assert_eq!(console.output(), Output::None);
    }

    #[test]
    fn a_full_queue_holds_a_vp_until_it_is_emptied_or_to_stop() {
        let console = console(Overflow::Wait);
        let vp = Arc::clone(&console);
        let print = move |n: usize| (0..n).for_each(|_| vp.write(0, &[b'x'; 1024]));
        let printer = std::thread::spawn({
            let print = print.clone();
            move || print(66)
        });
        std::thread::sleep(Duration::from_millis(50));
        assert!(!printer.is_finished());
        while !printer.is_finished() {
            console.take_output(4096);
        }
        printer.join().unwrap();
        let printer = std::thread::spawn(move || print(1000));
        std::thread::sleep(Duration::from_millis(50));
        console.release();
        printer.join().unwrap();
    }

    #[test]
    fn without_a_reader_output_is_bounded() {
        let console = console(Overflow::Drop);
        for _ in 0..1000 {
            console.write(0, &[b'x'; 1024]);
        }
        assert!(console.take_output(usize::MAX).len() <= 2 * OUTPUT_MAX);
    }
}
