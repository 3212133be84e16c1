//! Reads what comes out of the lab host, each port on a thread of its own.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use super::splitter::{Piece, Splitter};

/// What happens in the lab, in its order.
#[derive(Debug)]
pub enum Event {
    /// The job printed something.
    Text(Vec<u8>),
    /// The agent waits for its order.
    Ready,
    /// The job has ended, its results are on disk.
    Done {
        /// Exit status.
        status: i32,
    },
    /// QEMU is gone.
    Closed,
}

/// Follows the output port; results go to the file `results`.
pub fn follow_output(port: UnixStream, results: PathBuf) -> Receiver<Event> {
    let (sender, receiver) = channel();
    thread::spawn(move || {
        // Failing to write results shows as an incomplete archive.
        let _ = read_output(port, results, &sender);
        let _ = sender.send(Event::Closed);
    });
    receiver
}

fn read_output(mut port: UnixStream, results: PathBuf, events: &Sender<Event>) -> std::io::Result<()> {
    let mut splitter = Splitter::default();
    let mut buffer = vec![0; 65536];
    let mut ending: Option<(i32, usize, File)> = None;
    loop {
        let count = port.read(&mut buffer)?;
        if count == 0 {
            return Ok(());
        }
        for piece in splitter.feed(&buffer[..count]) {
            let event = match piece {
                Piece::Text(text) => Some(Event::Text(text)),
                Piece::Ready => Some(Event::Ready),
                Piece::Done { status, size } => {
                    ending = Some((status, size, File::create(&results)?));
                    None
                }
                Piece::Results(bytes) => {
                    if let Some((_, left, file)) = &mut ending {
                        file.write_all(&bytes)?;
                        *left = left.saturating_sub(bytes.len());
                    }
                    None
                }
            };
            if let Some(event) = event {
                let _ = events.send(event);
            }
        }
        if let Some((status, 0, _)) = ending {
            let _ = events.send(Event::Done { status });
            return Ok(());
        }
    }
}

/// Writes what comes from the serial port to the file `log`, and to standard error if `show`.
pub fn log_serial(mut port: UnixStream, mut log: File, show: bool) {
    thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(count @ 1..) = port.read(&mut buffer) {
            if log.write_all(&buffer[..count]).is_err() {
                break;
            }
            if show {
                let _ = std::io::stderr().write_all(&buffer[..count]);
            }
        }
    });
}
