//! What lies between the processes of a screen of a VM under systemd, kept in a process of its own: the same [`Seat`] as under
//! `bulkhead run`, given to whoever comes with the right user.

use std::net::SocketAddr;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::Args;
use ipc::socket::Listener;
use nix::sys::socket::{SockType, UnixAddr, getsockname, getsockopt, sockopt};
use serde::{Deserialize, Serialize};

use super::seat::{Doors, Port, Seat};
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
    let kept = Kept::new(Seat::without_ports(doors)?, Port::all(hold.listen, hold.web), Instant::now());
    notify_ready();
    serve(&counters, kept, |_| true)
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

/// Between two tries to open a port.
const AGAIN: Duration = Duration::from_secs(1);
/// How long the console waits for its ports. At boot an address may come a moment after the VM; but with a port that somebody else has for good,
/// there is still all that is done by the Unix sockets. Far below the time that the console's unit has to start.
const PATIENCE: Duration = Duration::from_secs(10);

/// The seat, and the ports that it does not have yet. The devices never wait for those, as the guest waits for the devices.
#[derive(Debug)]
struct Kept {
    seat: Seat,
    missing: Vec<Missing>,
    /// When they are tried again.
    next: Instant,
    /// When the console is no longer to wait for them.
    patience: Instant,
}

/// A port that is not open.
#[derive(Debug)]
struct Missing {
    port: Port,
    /// Whether that has been said.
    is_known: bool,
}

impl Kept {
    fn new(seat: Seat, ports: impl Iterator<Item = Port>, now: Instant) -> Self {
        let missing = ports.map(|port| Missing { port, is_known: false }).collect();
        let mut kept = Self { seat, missing, next: now, patience: now + PATIENCE };
        kept.tick(now);
        kept
    }
}

impl Held for Kept {
    type Handed = Handed;

    fn hand(&self, counter: usize) -> (Handed, Vec<BorrowedFd<'_>>) {
        let part = Part::ALL.get(counter).copied().unwrap_or(Part::Mouse);
        let (options, fds): (Vec<_>, Vec<_>) = self.seat.given(part).into_iter().unzip();
        let handed = match part {
            Part::Console => Handed::Console { options: options.into_iter().map(str::to_owned).collect() },
            Part::Video | Part::Keyboard | Part::Mouse => Handed::Seat {},
        };
        (handed, fds)
    }

    fn is_open(&self, counter: usize) -> bool {
        // A try comes at most `AGAIN` after the end of the patience, and with it this is asked again.
        let is_console = Part::ALL.get(counter) == Some(&Part::Console);
        !is_console || self.missing.is_empty() || self.next > self.patience
    }

    fn deadline(&self) -> Option<Instant> {
        (!self.missing.is_empty()).then_some(self.next)
    }

    fn tick(&mut self, now: Instant) {
        if now < self.next {
            return;
        }
        let Self { seat, missing, .. } = self;
        missing.retain_mut(|Missing { port, is_known }| match seat.open(*port) {
            Ok(()) => {
                if *is_known {
                    tracing::info!(
                        ?port,
                        "open at last; a console that runs has it when it is started again"
                    );
                }
                false
            }
            Err(error) => {
                if !std::mem::replace(is_known, true) {
                    tracing::warn!("{error}; it is tried again every second");
                }
                true
            }
        });
        self.next = now + AGAIN;
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
        let kept = Kept::new(Seat::without_ports(doors).unwrap(), Port::all(None, None), Instant::now());
        let connect = |name: &str| Peer::connect(&directory.join(name)).unwrap();
        let (first, second) = (connect("keyboard.sock"), connect("keyboard.sock"));
        let console = connect("console.seat.sock");
        let mut rounds = 0;
        serve(&counters, kept, |_| {
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

    #[test]
    fn a_port_that_is_taken_keeps_no_device_waiting_and_the_console_not_for_long() {
        let directory = std::env::temp_dir().join(format!("bulkhead-seat-port-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let kept = |name: &str, ports, now| {
            let doors = Doors::open(&directory.join(format!("{name}.vnc")), &directory.join(name)).unwrap();
            Kept::new(Seat::without_ports(doors).unwrap(), ports, now)
        };
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap();
        let start = Instant::now();
        let mut first = kept("first", Port::all(Some(address), None), start);
        let console = Part::ALL.iter().position(|part| *part == Part::Console).unwrap();
        let has = |kept: &Kept, wanted| match kept.hand(console).0 {
            Handed::Console { options } => options.iter().filter(|option| *option == wanted).count(),
            Handed::Seat {} => panic!("that is a device's"),
        };
        let open =
            |kept: &Kept| (0..Part::ALL.len()).map(|counter| kept.is_open(counter)).collect::<Vec<_>>();
        assert_eq!(open(&first), [true, true, true, false], "a guest boots by the first three");
        assert!(first.missing[0].is_known, "it was said");
        let counters = ["video", "keyboard", "mouse", "console"].map(|name| {
            let listener = Listener::bind(&directory.join(name)).unwrap();
            Counter { listener, users: vec![nix::unistd::geteuid().as_raw()] }
        });
        let [device, waits] = ["video", "console"].map(|name| Peer::connect(&directory.join(name)).unwrap());
        let mut rounds = 0;
        serve(&counters, kept("served", Port::all(Some(address), None), start), |_| {
            rounds += 1;
            rounds <= 1
        })
        .unwrap();
        assert_eq!(device.recv::<Handed>().unwrap().0, Handed::Seat {});
        waits.set_nonblocking(true).unwrap();
        assert!(waits.recv::<Handed>().is_err(), "it is in the queue");

        // Nothing is tried before it is time.
        drop(taken);
        first.tick(start + AGAIN / 2);
        assert!(!first.is_open(console) && first.deadline() == Some(start + AGAIN));
        first.tick(start + AGAIN);
        assert!(first.is_open(console) && first.deadline().is_none());
        assert_eq!((has(&first, "--rfb-fd"), has(&first, "--web-fd")), (2, 1));

        // One that stays taken: the console has the rest.
        let mut second = kept("second", Port::all(Some(address), None), start);
        let mut now = start;
        while !second.is_open(console) {
            now = second.deadline().unwrap();
            second.tick(now);
        }
        assert_eq!(now, start + PATIENCE);
        assert_eq!((has(&second, "--rfb-fd"), has(&second, "--web-fd")), (1, 1));
        assert!(second.deadline().is_some(), "it is tried on");
        std::fs::remove_dir_all(&directory).unwrap();
    }
}
