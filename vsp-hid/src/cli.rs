//! The command line.

use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use seat::cli::{OpenError, SeatArgs};
use vsp::{Program, policies};

use crate::device::Hid;
use crate::keyboard::Keyboard;
use crate::mouse::Mouse;

const PROGRAM: Program = Program { name: "vsp-hid", policy: policies::VSP_HID };

/// The time from key to key when somebody types faster than a person. With what goes at once in advance, a guest's
/// process may fail to run for 10 ms, and still no key is dropped behind its driver.
const EACH_KEY: Duration = Duration::from_millis(2);

/// The same for the mouse. Good ones tell where they are a thousand times a second.
const EACH_REPORT: Duration = Duration::from_millis(1);

/// A Bulkhead keyboard or mouse: serves one guest what people do at the console
#[derive(Debug, Parser)]
#[command(version)]
pub struct Args {
    /// What every device process takes.
    #[command(flatten)]
    pub common: vsp::Common,

    /// Which of the two it is.
    #[command(flatten)]
    pub which: Which,

    /// Where the console is.
    #[command(flatten)]
    pub seat: SeatArgs,

    /// The guest's keyboard driver understands characters that no key has. Linux' does not: it takes them for keys
    #[arg(long, conflicts_with = "mouse")]
    pub unicode: bool,
}

/// One of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::Args)]
#[group(id = "which", required = true, multiple = false)]
pub struct Which {
    /// Be a keyboard
    #[arg(long)]
    pub keyboard: bool,

    /// Be a mouse
    #[arg(long)]
    pub mouse: bool,
}

/// Serves until the core is gone.
pub fn run(args: &Args) -> ExitCode {
    // The first hash table of a thread asks the kernel for random numbers, which cannot be done any more once the door is closed.
    let _ = std::hash::RandomState::new();
    if args.which.keyboard {
        vsp::serve(PROGRAM, &args.common, || {
            Ok::<_, OpenError>(Hid::new(Keyboard::new(args.unicode), args.seat.open()?, EACH_KEY))
        })
    } else {
        vsp::serve(PROGRAM, &args.common, || {
            Ok::<_, OpenError>(Hid::new(Mouse::new(), args.seat.open()?, EACH_REPORT))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Args, clap::Error> {
        Args::try_parse_from(line.split_whitespace())
    }

    #[test]
    fn the_supervisors_line_parses() {
        let args =
            parse("vsp-hid --keyboard --device keyboard --core-fd 3 --notify-fd 4 --seat-fd 5").unwrap();
        assert!(args.which.keyboard && !args.which.mouse && !args.unicode);
        assert_eq!(args.seat.seat_fd, Some(5));
        let args = parse("vsp-hid --mouse --device mouse --core /run/core --seat-socket /run/seat").unwrap();
        assert!(args.which.mouse && args.seat.seat_socket.is_some());
        assert!(parse("vsp-hid --keyboard --unicode --device k --seat-fd 5").unwrap().unicode);
    }

    #[test]
    fn it_is_one_thing_at_a_place() {
        for line in [
            "vsp-hid --device k --seat-fd 5",
            "vsp-hid --keyboard --mouse --device k --seat-fd 5",
            "vsp-hid --keyboard --device k",
            "vsp-hid --mouse --unicode --device k --seat-fd 5",
        ] {
            assert!(parse(line).is_err(), "{line}");
        }
    }
}
