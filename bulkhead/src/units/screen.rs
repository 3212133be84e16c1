//! The units of a screen: its devices, the console, and what keeps the sockets between them (`bulkhead hold-seat`).

use std::ffi::OsStr;
use std::net::SocketAddr;
use std::path::Path;

use super::Names;
use super::content::{HEADER, Sandbox, device_unit, kind};
use super::escape::{self, Unwritable};
use crate::plan::{self, Device, Part, Plan};
use crate::screen::holder::{self, SOCKETS};
use crate::spec;

/// The first port that everybody may have, unless the host's administrator has another opinion (`net.ipv4.ip_unprivileged_port_start`).
const FIRST_FOR_ALL: u16 = 1024;
/// What one below takes.
const LOW_PORT: &str =
    "CapabilityBoundingSet=CAP_NET_BIND_SERVICE\nAmbientCapabilities=CAP_NET_BIND_SERVICE\n";

/// A screen.
pub(super) struct Screen<'a> {
    /// The program.
    pub(super) bulkhead: &'a Path,
    /// As it is written.
    pub(super) screen: &'a spec::Screen,
    /// What lies between its processes.
    pub(super) seat: &'a plan::Seat,
    /// Of the VM.
    pub(super) plan: &'a Plan,
    /// The same.
    pub(super) names: Names<'a>,
}

impl Screen<'_> {
    /// The drop-in of a process with that part.
    pub(super) fn device(&self, device: &Device, part: Part, user: &str) -> Result<String, Unwritable> {
        let names = self.names;
        let number = Part::ALL.iter().position(|other| *other == part).unwrap_or_default();
        let socket = names.runtime().join(SOCKETS[number]);
        let mut sandbox = Sandbox::default();
        sandbox.read(&device.program)?;
        if part == Part::Console {
            let Screen { screen, .. } = self;
            let tls = screen.tls.iter().flat_map(|tls| [&tls.cert, &tls.key]);
            for path in screen.password_file.iter().chain(tls).chain(&screen.novnc) {
                sandbox.read(path)?;
            }
        }
        let after = format!(" {} {}", names.seat_socket(), names.seat());
        device_unit(device, &[OsStr::new("--seat-socket"), socket.as_os_str()], names, &after, user, &sandbox)
    }

    /// The drop-in of what keeps the sockets.
    pub(super) fn holder(&self, user: &str) -> Result<String, Unwritable> {
        let mut sandbox = Sandbox::default();
        sandbox.read(self.bulkhead)?;
        let of_part = |part: Part| self.plan.devices.iter().find(move |device| device.part == Some(part));
        let devices: Vec<&Device> = Part::ALL.into_iter().filter_map(of_part).collect();
        // The ids are there whenever units are written.
        let users: Vec<u32> = devices.iter().map(|device| device.id.unwrap_or(0)).collect();
        let words = holder::arguments(&users, self.seat);
        let command = std::iter::once(self.bulkhead.as_os_str()).chain(words.iter().map(OsStr::new));
        let command = escape::command_line(command)?;
        let units = devices.iter().flat_map(|device| self.names.device(kind(device), &device.name));
        let units = units.collect::<Vec<_>>().join(" ");
        let ports = || [self.seat.listen, self.seat.web].into_iter().flatten();
        let addresses = if ports().any(|at| !at.ip().is_loopback()) { "IPAddressDeny=\n" } else { "" };
        let is_low = |at: SocketAddr| (1..FIRST_FOR_ALL).contains(&at.port());
        let capability = if ports().any(is_low) { LOW_PORT } else { "" };
        Ok(format!(
            "{HEADER}[Service]\nUser={user}\nExecStart=\nExecStart={command}\n\
             # Its processes have what the last one opened: they get what the next one opens when they are started again.\n\
             ExecStopPost=-+/usr/bin/systemctl kill --signal=KILL {units}\n{addresses}{capability}{}",
            sandbox.text
        ))
    }
}
