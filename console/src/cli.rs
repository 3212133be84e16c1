//! The command line.

use clap::Parser;

use crate::{given, web};

/// A Bulkhead console: shows a VM's screen to people, and brings their keys and pointers to it
#[derive(Debug, Parser)]
#[command(version)]
pub struct Args {
    /// What every process takes; nothing here attaches to a core.
    #[command(flatten)]
    pub common: vsp::Common,

    /// What it was given.
    #[command(flatten)]
    pub given: given::Args,

    /// The web page.
    #[command(flatten)]
    pub web: web::Args,

    /// Name of the VM, which viewers show
    #[arg(long, value_name = "NAME", default_value = "Bulkhead")]
    pub name: String,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_supervisors_line_parses() {
        Args::command().debug_assert();
        let line = "bulkhead-console --notify-fd 4 --watchdog-usec 3000000 --log-format json --log-level info --device \
                    console --name vm --password-file /p --uid 7 --gid 8 --video-fd 5 --keyboard-fd 6 --mouse-fd 7 \
                    --rfb-fd 8 --control-fd 9 --web-fd 10 --secret-fd 11 --rfb-fd 12";
        let args = Args::try_parse_from(line.split_whitespace()).unwrap();
        assert_eq!((args.name.as_str(), args.given.rfb_fd), ("vm", vec![8, 12]));
    }
}
