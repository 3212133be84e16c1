//! The processes of a screen.

use std::ffi::OsString;
use std::net::SocketAddr;

use super::{Device, Users};
use crate::programs::Programs;
use crate::spec::Screen;
use crate::spec::screen::{CONSOLE, KEYBOARD, MOUSE, VIDEO};
use crate::spec::size::MIB;

/// Who sits where: a device and the console are connected by a pair of sockets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The screen.
    Video,
    /// The keyboard.
    Keyboard,
    /// The mouse.
    Mouse,
    /// What shows them to people: it has the other end of all three.
    Console,
}

impl Part {
    /// All of them, in the order of their users.
    pub const ALL: [Part; 4] = [Part::Video, Part::Keyboard, Part::Mouse, Part::Console];

    /// What its device is called.
    pub fn name(self) -> &'static str {
        match self {
            Part::Video => VIDEO,
            Part::Keyboard => KEYBOARD,
            Part::Mouse => MOUSE,
            Part::Console => CONSOLE,
        }
    }
}

/// Where people get to a screen besides the Unix sockets in the VM's runtime directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seat {
    /// The number of the user, in the VM's block, that keeps it under systemd.
    pub user: usize,
    /// VNC.
    pub listen: Option<SocketAddr>,
    /// The web page; `None`: at a port of 127.0.0.1, once somebody has asked for it.
    pub web: Option<SocketAddr>,
}

impl Seat {
    pub(super) fn of(screen: &Screen, user: usize) -> Self {
        Self { user, listen: screen.listen, web: screen.web }
    }
}

/// The processes of the VM's screen, whose users have the numbers from `first` on.
pub(super) fn devices(
    vm: &str,
    screen: &Screen,
    programs: &Programs,
    users: Users,
    first: usize,
) -> Vec<Device> {
    let device = |(user, part): (usize, Part)| {
        let program = match part {
            Part::Video => &programs.vsp_video,
            Part::Keyboard | Part::Mouse => &programs.vsp_hid,
            Part::Console => &programs.console,
        };
        let mut args: Vec<OsString> = vec!["--device".into(), part.name().into()];
        match part {
            Part::Video => args.extend(["--vram".into(), (screen.vram / MIB).to_string().into()]),
            Part::Keyboard => args.push("--keyboard".into()),
            Part::Mouse => args.push("--mouse".into()),
            Part::Console => args.extend(console(vm, screen)),
        }
        args.extend(users.words(user));
        Device {
            name: part.name().to_owned(),
            program: program.clone().unwrap_or_default(),
            args,
            user,
            id: users.id(user),
            // The console keeps nothing that somebody else could take over.
            spare: screen.spare && part != Part::Console,
            network: None,
            part: Some(part),
            pci: None,
        }
    };
    (first..).zip(Part::ALL).map(device).collect()
}

/// What the console is told. Files by their paths: each of its processes reads what is in them when it starts.
fn console(vm: &str, screen: &Screen) -> Vec<OsString> {
    let mut args: Vec<OsString> = vec!["--name".into(), vm.into()];
    let files = [
        ("--password-file", screen.password_file.as_ref()),
        ("--tls-cert", screen.tls.as_ref().map(|tls| &tls.cert)),
        ("--tls-key", screen.tls.as_ref().map(|tls| &tls.key)),
        ("--novnc", screen.novnc.as_ref()),
    ];
    for (option, path) in files {
        args.extend(path.into_iter().flat_map(|path| [option.into(), path.into()]));
    }
    args
}
