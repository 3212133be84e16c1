//! The command line that all device processes share.

use std::os::fd::RawFd;
use std::path::PathBuf;

use clap::Args;

/// Options of every device process. Flatten it into the device's own: `#[command(flatten)] common:
/// vsp::Common`.
#[derive(Clone, Debug, Default, Args)]
pub struct Common {
    /// Control socket of the core to attach to
    #[arg(long, value_name = "PATH", conflicts_with = "core_fd", help_heading = "Attaching")]
    pub core: Option<PathBuf>,

    /// The same as an inherited descriptor, connected already
    #[arg(long, value_name = "FD", help_heading = "Attaching")]
    pub core_fd: Option<RawFd>,

    /// Name of the device slot to fill, as the VM's configuration has it; a name of your choice with --vhost-user
    #[arg(
        long,
        value_name = "NAME",
        default_value = "",
        hide_default_value = true,
        help_heading = "Attaching"
    )]
    pub device: String,

    /// Socket of whoever supervises this process (sd_notify's protocol), as an inherited descriptor; without it,
    /// NOTIFY_SOCKET
    #[arg(long, value_name = "FD", help_heading = "Attaching")]
    pub notify_fd: Option<RawFd>,

    /// Give a sign of life at least this often, in microseconds; without it, WATCHDOG_USEC
    #[arg(long, value_name = "MICROSECONDS", help_heading = "Attaching")]
    pub watchdog_usec: Option<u64>,

    /// Serve without a ledger, to measure what it costs; a process that dies then takes its requests with it
    #[arg(long, hide = true)]
    pub bench_without_ledger: bool,

    /// End at a point of the ledger's protocol, NAME:COUNT (debug builds only)
    #[arg(long, value_name = "POINT", hide = true)]
    pub kill_point: Option<String>,

    /// User to become once everything is open
    #[arg(long, requires = "gid", help_heading = "Compartment")]
    pub uid: Option<u32>,

    /// Group to become once everything is open
    #[arg(long, requires = "uid", help_heading = "Compartment")]
    pub gid: Option<u32>,

    /// Close the compartment, then try something forbidden and say what happened
    #[arg(long, value_name = "ACT", help_heading = "Compartment")]
    pub policy_test: Option<String>,

    /// Stay outside the compartment (debug builds only)
    #[arg(long, help_heading = "Compartment")]
    pub no_sandbox: bool,

    /// `human` or `json`
    #[arg(long, value_name = "FORMAT", default_value_t, help_heading = "Logging")]
    pub log_format: logs::Format,

    /// `off`, `error`, `warn`, `info`, `debug` or `trace`
    #[arg(long, value_name = "LEVEL", default_value = "info", help_heading = "Logging")]
    pub log_level: LogLevel,
}

/// A level that has a default.
#[derive(Clone, Copy, Debug)]
pub struct LogLevel(pub logs::Level);

impl Default for LogLevel {
    fn default() -> Self {
        LogLevel(logs::Level::INFO)
    }
}

impl std::str::FromStr for LogLevel {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.parse().map(LogLevel).map_err(|_| format!("unknown level `{text}`"))
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Program {
        #[command(flatten)]
        common: Common,
    }

    fn parse(line: &str) -> Result<Common, clap::Error> {
        Program::try_parse_from(line.split(' ')).map(|program| program.common)
    }

    #[test]
    fn the_supervisors_line_parses() {
        let common = parse("vsp --core-fd 5 --device disk0 --uid 7 --gid 8 --log-format json").unwrap();
        assert_eq!((common.core_fd, common.uid, common.gid), (Some(5), Some(7), Some(8)));
        assert_eq!(common.log_format, logs::Format::Json);
        assert_eq!(common.log_level.0, logs::Level::INFO);
    }

    #[test]
    fn what_contradicts_itself_is_refused() {
        assert!(parse("vsp --device d --core /run/x --core-fd 3").is_err());
        assert!(parse("vsp --device d --uid 3").is_err());
        assert!(parse("vsp --device d --log-level loud").is_err());
    }
}
