//! The caller's terminal in raw mode, joined to the lab host's serial port.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::thread;

use anyhow::Result;

/// The terminal in raw mode; dropping this restores it.
pub struct Raw {
    saved: Option<String>,
}

impl Raw {
    /// Makes the terminal raw, if standard input is one.
    pub fn enter() -> Result<Self> {
        let saved = stty(&["-g"]);
        if saved.is_some() {
            stty(&["raw", "-echo"]);
        }
        Ok(Self { saved })
    }

    /// Rows and columns.
    pub fn size(&self) -> (u16, u16) {
        let text = stty(&["size"]).unwrap_or_default();
        let mut words = text.split_whitespace().map(|word| word.parse().unwrap_or(0));
        match (words.next(), words.next()) {
            (Some(rows @ 1..), Some(columns @ 1..)) => (rows, columns),
            _ => (24, 80),
        }
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        if let Some(saved) = &self.saved {
            stty(&[saved]);
        }
    }
}

fn stty(arguments: &[&str]) -> Option<String> {
    let output = Command::new("stty").args(arguments).stdin(Stdio::inherit()).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Carries bytes both ways, on two threads, until either side ends.
pub fn bridge(port: UnixStream) -> Result<()> {
    let mut to = port.try_clone()?;
    thread::spawn(move || {
        let mut buffer = [0; 1024];
        while let Ok(count @ 1..) = std::io::stdin().read(&mut buffer) {
            if to.write_all(&buffer[..count]).is_err() {
                break;
            }
        }
    });
    let mut from = port;
    thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(count @ 1..) = from.read(&mut buffer) {
            let mut stdout = std::io::stdout().lock();
            let _ = stdout.write_all(&buffer[..count]).and_then(|()| stdout.flush());
        }
    });
    Ok(())
}
