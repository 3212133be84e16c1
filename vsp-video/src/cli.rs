//! The command line.

use std::str::FromStr;

use clap::Parser;
use seat::cli::SeatArgs;
use thiserror::Error;

use crate::wire::Resolution;

/// A Bulkhead screen: what a guest draws, for the console to show
#[derive(Debug, Parser)]
#[command(version)]
pub struct Args {
    /// What every device process takes.
    #[command(flatten)]
    pub common: vsp::Common,

    /// Where the console is.
    #[command(flatten)]
    pub seat: SeatArgs,

    /// Video memory in MiB; 32 is enough for 3840x2160
    #[arg(long, value_name = "MIB", default_value_t = 32, value_parser = clap::value_parser!(u16).range(4..=256))]
    pub vram: u16,

    /// Resolution that the guest begins with
    #[arg(long, value_name = "WIDTHxHEIGHT", default_value = "1280x800")]
    pub resolution: ResolutionArg,
}

/// The same as data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Setting {
    /// Video memory in MiB.
    pub vram_megabytes: u16,
    /// What the guest begins with.
    pub preferred: Resolution,
}

impl Args {
    /// What of it is about the screen.
    pub fn setting(&self) -> Setting {
        Setting { vram_megabytes: self.vram, preferred: self.resolution.0 }
    }
}

/// A resolution as people write it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResolutionArg(pub Resolution);

/// A text that is no resolution.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("`{0}` is no resolution: write two numbers as in 1920x1080")]
pub struct NoResolution(String);

impl FromStr for ResolutionArg {
    type Err = NoResolution;

    fn from_str(text: &str) -> Result<ResolutionArg, NoResolution> {
        let number =
            |text: &str| text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())?;
        let parsed = text.split_once('x').and_then(|(width, height)| {
            Some(ResolutionArg(Resolution { width: number(width)?, height: number(height)? }))
        });
        parsed.ok_or_else(|| NoResolution(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_supervisors_line_parses() {
        let line = "vsp-video --core-fd 3 --notify-fd 4 --device video --vram 64 --seat-fd 5";
        let args = Args::try_parse_from(line.split(' ')).unwrap();
        let preferred = Resolution { width: 1280, height: 800 };
        assert_eq!(args.setting(), Setting { vram_megabytes: 64, preferred });
        assert_eq!(args.seat.seat_fd, Some(5));
        let line = "vsp-video --device video --seat-socket /run/x --resolution 1920x1080";
        let setting = Args::try_parse_from(line.split(' ')).unwrap().setting();
        let preferred = Resolution { width: 1920, height: 1080 };
        assert_eq!(setting, Setting { vram_megabytes: 32, preferred });
    }

    #[test]
    fn mistakes_are_named() {
        for text in ["", "x", "1920", "1920x", "x1080", "1920x1080x2", "+1920x1080", "99999x1", "1920X1080"] {
            assert_eq!(text.parse::<ResolutionArg>(), Err(NoResolution(text.to_owned())));
        }
        for line in ["--vram 3", "--vram 257", "--vram x", "--resolution large"] {
            let line = format!("vsp-video --device video --seat-fd 5 {line}");
            assert!(Args::try_parse_from(line.split(' ')).is_err(), "{line}");
        }
        assert!(Args::try_parse_from(["vsp-video", "--device", "video"]).is_err(), "no seat");
    }
}
