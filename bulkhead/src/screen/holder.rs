//! What lies between the processes of a screen of a VM under systemd, kept in a process of its own: the same [`Seat`] as under
//! `bulkhead run`, given to whoever comes with the right user.

use std::net::SocketAddr;
use std::os::fd::{BorrowedFd, OwnedFd};

use anyhow::{Context, bail};
use clap::Args;
use ipc::socket::Listener;
use nix::sys::socket::{SockType, UnixAddr, getsockname, getsockopt, sockopt};
use serde::{Deserialize, Serialize};

use super::seat::{Doors, Seat};
use crate::holder::{Counter, FIRST_LISTENER, Held, notify_ready, serve};
use crate::plan::{self, Part};

/// Beside the descriptors: what they are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Handed {
    /// A device's end of its pair.
    Seat {},
    /// What the console gets: the option for each of the descriptors, in their order.
    Console {
        /// `--video-fd` and so on.
        options: Vec<String>,
    },
}

/// `bulkhead hold-seat`.
#[derive(Debug, Args)]
pub struct Hold {
    /// The users that the processes begin as: those of the screen, the keyboard, the mouse and the console
    #[arg(long, num_args = 4, required = true)]
    pub users: Vec<u32>,

    /// Where VNC is served besides
    #[arg(long)]
    pub listen: Option<SocketAddr>,

    /// Where the web page is served
    #[arg(long)]
    pub web: Option<SocketAddr>,
}

/// The arguments of `bulkhead` for that.
pub fn arguments(users: &[u32], seat: &plan::Seat) -> Vec<String> {
    let mut words = vec!["hold-seat".to_owned(), "--users".to_owned()];
    words.extend(users.iter().map(u32::to_string));
    for (option, address) in [("--listen", seat.listen), ("--web", seat.web)] {
        words.extend(address.into_iter().flat_map(|address| [option.to_owned(), address.to_string()]));
    }
    words
}

/// The Unix sockets of a seat under systemd, in the VM's runtime directory: where its processes come, in the order of
/// [`Part::ALL`], and where people do.
pub const SOCKETS: [&str; 6] =
    ["video.sock", "keyboard.sock", "mouse.sock", "console.seat.sock", VNC, CONTROL];
const VNC: &str = crate::runtime_dir::VNC_SOCKET;
const CONTROL: &str = crate::runtime_dir::SCREEN_SOCKET;

/// Does it until it is killed.
pub fn execute(hold: &Hold) -> anyhow::Result<()> {
    let mut sockets: Vec<Option<OwnedFd>> = Vec::new();
    for (number, name) in (FIRST_LISTENER..).zip(SOCKETS) {
        let socket = ipc::socket::inherited_descriptor(number)
            .with_context(|| format!("systemd has handed over no socket {name} (descriptor {number})"))?;
        check(&socket, name)?;
        sockets.push(Some(socket));
    }
    let mut take =
        |number: usize| sockets.get_mut(number).and_then(Option::take).context("a socket is missing");
    let counters = hold.users.iter().enumerate().map(|(number, user)| {
        let listener = Listener::from_fd(take(number)?)?;
        Ok(Counter { listener, users: vec![0, *user] })
    });
    let counters = counters.collect::<anyhow::Result<Vec<_>>>()?;
    let doors = Doors { vnc: take(4)?, control: take(5)? };
    let seat = Seat::new(hold.listen, hold.web, doors)?;
    notify_ready();
    serve(&counters, seat, |_| true)
}

/// The order in which systemd hands them over is that of its unit; better to be sure.
fn check(socket: &OwnedFd, name: &str) -> anyhow::Result<()> {
    use std::os::fd::AsRawFd;
    let address: UnixAddr =
        getsockname(socket.as_raw_fd()).context("what systemd has handed over is no socket")?;
    let is_it = address.path().is_some_and(|path| path.ends_with(name));
    let wanted = if [VNC, CONTROL].contains(&name) { SockType::Stream } else { SockType::SeqPacket };
    if !is_it || getsockopt(socket, sockopt::SockType) != Ok(wanted) {
        bail!("systemd has handed over another socket in the place of {name}: run bulkhead units again");
    }
    Ok(())
}

impl Held for Seat {
    type Handed = Handed;

    fn hand(&self, counter: usize) -> (Handed, Vec<BorrowedFd<'_>>) {
        let part = Part::ALL.get(counter).copied().unwrap_or(Part::Mouse);
        let (options, fds): (Vec<_>, Vec<_>) = self.given(part).into_iter().unzip();
        let handed = match part {
            Part::Console => Handed::Console { options: options.into_iter().map(str::to_owned).collect() },
            Part::Video | Part::Keyboard | Part::Mouse => Handed::Seat {},
        };
        (handed, fds)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::net::UnixStream;

    use clap::Parser;
    use ipc::socket::Peer;

    use super::*;

    #[derive(Parser)]
    struct Words {
        #[command(flatten)]
        hold: Hold,
    }

    #[test]
    fn what_is_written_into_a_unit_is_understood() {
        let seat = plan::Seat { user: 9, listen: Some("127.0.0.1:5900".parse().unwrap()), web: None };
        let words = arguments(&[1, 2, 3, 4], &seat);
        let Words { hold } = Words::try_parse_from(words.iter()).unwrap();
        assert_eq!((hold.users, hold.listen, hold.web), (vec![1, 2, 3, 4], seat.listen, None));
        assert!(Words::try_parse_from(["hold-seat", "--users", "1", "2", "3"]).is_err());
    }

    #[test]
    fn each_process_is_given_its_own_end_again_and_again() {
        let directory = std::env::temp_dir().join(format!("bulkhead-seat-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let me = nix::unistd::geteuid().as_raw();
        let counters: Vec<Counter> = SOCKETS[..4]
            .iter()
            .map(|name| Counter { listener: Listener::bind(&directory.join(name)).unwrap(), users: vec![me] })
            .collect();
        let doors = Doors::open(&directory.join(VNC), &directory.join(CONTROL)).unwrap();
        let seat = Seat::new(None, None, doors).unwrap();
        let connect = |name: &str| Peer::connect(&directory.join(name)).unwrap();
        let (first, second) = (connect("keyboard.sock"), connect("keyboard.sock"));
        let console = connect("console.seat.sock");
        let mut rounds = 0;
        serve(&counters, seat, |_| {
            rounds += 1;
            // One of those who wait at a counter is served a round; with nobody there it would wait for ever.
            rounds <= 2
        })
        .unwrap();
        let (handed, mut keyboard) = first.recv::<Handed>().unwrap();
        assert_eq!((handed, keyboard.len()), (Handed::Seat {}, 1));
        assert_eq!(second.recv::<Handed>().unwrap().1.len(), 1);
        let (handed, fds) = console.recv::<Handed>().unwrap();
        let Handed::Console { options } = handed else { panic!("{handed:?}") };
        assert_eq!(options.len(), fds.len());
        let keyboard_end = options.iter().position(|option| option == "--keyboard-fd").unwrap();
        nix::unistd::write(keyboard.remove(0), b"Hello").unwrap();
        let mut said = [0; 16];
        assert_eq!(nix::unistd::read(&fds[keyboard_end], &mut said).unwrap(), 5, "it was the other end");
        // Whoever connects waits in the queue: the listener is one and the same for every console.
        let vnc = UnixStream::connect(directory.join(VNC));
        assert!(vnc.unwrap().write_all(b"RFB").is_ok());
        std::fs::remove_dir_all(&directory).unwrap();
    }
}
