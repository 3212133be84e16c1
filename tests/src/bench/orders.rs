//! Measures on demand: orders come as lines, answers go as lines.
//!
//! * [`Work`] is answered with `measured READS NANOSECONDS P50 P99` (of one read's latency, in nanoseconds),
//! * `memory` with `memory KIB`: what the serving process has for itself, guest RAM left out.
//!
//! The first line is `ready`, once the side is. The end of the input is the end.

use std::io::{BufRead, Write};

use anyhow::Context;

use super::{Side, Work, measure};

/// Serves until the input ends.
pub fn serve(
    side: &mut dyn Side,
    size: u64,
    input: impl BufRead,
    mut output: impl Write,
) -> anyhow::Result<()> {
    writeln!(output, "ready")?;
    output.flush()?;
    for (seed, line) in (1..).zip(input.lines()) {
        let line = line?;
        if line.trim() == "memory" {
            let pid = side.server().context("nobody's memory")?;
            writeln!(output, "memory {}", private_dirty(&smaps(pid)?))?;
        } else {
            let work: Work = line.parse()?;
            let measured = measure(side, &work, size, seed * 0x9e37_79b9)?;
            let (reads, time, p50, p99) = (measured.reads, measured.time, measured.p50, measured.p99);
            writeln!(output, "measured {reads} {time} {p50} {p99}")?;
        }
        output.flush()?;
    }
    Ok(())
}

fn smaps(pid: u32) -> anyhow::Result<String> {
    let path = format!("/proc/{pid}/smaps");
    std::fs::read_to_string(&path).with_context(|| format!("{path} (only root may look at a compartment)"))
}

/// KiB of private dirty memory in `smaps`, without guest RAM, which is the core's.
fn private_dirty(smaps: &str) -> u64 {
    let (mut guests, mut sum) = (false, 0);
    for line in smaps.lines() {
        let first = line.split_whitespace().next().unwrap_or_default();
        if !first.ends_with(':') {
            guests = line.split_once("/memfd:").is_some_and(|(_, name)| name.contains("ram"));
        } else if first == "Private_Dirty:" && !guests {
            sum += line.split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0);
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::private_dirty;

    #[test]
    fn the_guests_pages_are_not_the_servers() {
        let smaps = "55d0-55d4 rw-p 0000 08:01 12   /usr/bin/vsp-storage\nRss: 16 kB\nPrivate_Dirty:  12 kB\n\
            7f00-7f10 rw-s 0000 00:01 12   /memfd:bulkhead-ram (deleted)\nPrivate_Dirty:  64000 kB\n\
            7fff-8000 rw-p 0000 00:00 0    [stack]\nPrivate_Dirty:  8 kB\nVmFlags: rd wr\n";
        assert_eq!(private_dirty(smaps), 20);
    }
}
