//! The program that measures. What it understands is in `tests/src/net/bench/orders.rs`.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context, Result, ensure};

/// A program at work.
pub struct Side {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Side {
    /// Starts it; the programs are in `programs`. With `full`, the NIC's process sees all of the guest's memory.
    pub fn start(programs: &Path, full: bool) -> Result<Self> {
        let mut command = Command::new(programs.join("bench-net"));
        command.args(full.then_some("--full")).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().context("starting bench-net")?;
        let input = child.stdin.take();
        let output = BufReader::new(child.stdout.take().context("no output")?);
        let mut side = Self { child, input, output };
        let hello = side.line().context("bench-net does not start")?;
        ensure!(hello == "ready", "bench-net begins with {hello:?}");
        Ok(side)
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        ensure!(self.output.read_line(&mut line)? > 0, "it has ended");
        Ok(line.trim().to_owned())
    }

    /// Measures something.
    pub fn ask(&mut self, order: &str) -> Result<f64> {
        writeln!(self.input.as_mut().context("no input")?, "{order}")?;
        let answer = self.line().with_context(|| format!("asked for {order:?}"))?;
        parse(&answer).with_context(|| format!("{order:?} is answered with {answer:?}"))
    }
}

impl Drop for Side {
    fn drop(&mut self) {
        // The end of its input is its end, and that of what it has started.
        self.input = None;
        let _ = self.child.wait();
    }
}

fn parse(answer: &str) -> Option<f64> {
    answer.strip_prefix("measured ")?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn answers_are_understood() {
        assert_eq!(parse("measured 1.5"), Some(1.5));
        assert_eq!(parse("measured"), None);
        assert_eq!(parse("figure 1"), None);
    }
}
