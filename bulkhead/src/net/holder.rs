//! What a NIC of a VM under systemd is connected to, in a process of its own: it opens that once, keeps it, and gives it to every process
//! of the device that connects to its socket.
//!
//! So a TAP keeps its carrier and its frames, and a `passt` its connections, while the device's processes come and go; and those need no
//! right to open anything. systemd holds the socket, so nobody comes too early.

use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::Context;
use clap::{ArgGroup, Args};
use ipc::socket::Listener;
use serde::{Deserialize, Serialize};

use super::backend::{Backend, Kind};
use crate::holder::{Counter, FIRST_LISTENER, Held, notify_ready, serve};
use crate::plan::Network;

/// Beside the descriptors: what they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Handed {
    /// A queue of a TAP each.
    Taps {},
    /// One stream with `passt`'s framing.
    Stream {},
}

/// `bulkhead net hold`.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("what").required(true).args(["tap", "macvtap", "passt"]))]
pub struct Hold {
    /// The device's name, for the log
    #[arg(long)]
    pub device: String,

    /// The user that the device's processes begin as
    #[arg(long)]
    pub user: u32,

    /// The TAP
    #[arg(long)]
    pub tap: Option<String>,

    /// The macvtap
    #[arg(long)]
    pub macvtap: Option<String>,

    /// The program `passt`
    #[arg(long)]
    pub passt: Option<PathBuf>,

    /// Queues to open
    #[arg(long, default_value_t = 1)]
    pub queues: u32,

    /// What passt tells the guest
    #[arg(long, default_value_t = 1500)]
    pub mtu: u16,
}

impl Hold {
    fn network(&self) -> Network {
        let queues = self.queues;
        match (&self.tap, &self.macvtap) {
            (Some(name), _) => Network::Tap { name: name.clone(), queues },
            (_, Some(name)) => Network::Macvtap { name: name.clone(), queues },
            _ => Network::Passt {
                program: self.passt.clone().unwrap_or_default(),
                mtu: self.mtu,
                // systemd has made us that user.
                user: 0,
                id: None,
            },
        }
    }
}

/// The arguments of `bulkhead` for that; `user` is the device's.
pub fn arguments(device: &str, user: u32, network: &Network) -> Vec<String> {
    let mut words =
        ["net", "hold", "--device", device, "--user", &user.to_string()].map(str::to_owned).to_vec();
    let (option, value, more) = match network {
        Network::Tap { name, queues } => ("--tap", name.clone(), ("--queues", queues.to_string())),
        Network::Macvtap { name, queues } => ("--macvtap", name.clone(), ("--queues", queues.to_string())),
        Network::Passt { program, mtu, .. } => {
            ("--passt", program.to_string_lossy().into_owned(), ("--mtu", mtu.to_string()))
        }
    };
    words.extend([option.to_owned(), value, more.0.to_owned(), more.1]);
    words
}

/// Does it until it is killed.
pub fn execute(hold: &Hold) -> anyhow::Result<()> {
    let listener =
        Listener::inherited(FIRST_LISTENER).context("systemd has handed over no socket (descriptor 3)")?;
    let backend = Backend::open(&hold.device, &hold.network()).context(hold.device.clone())?;
    notify_ready();
    serve(&[Counter { listener, users: vec![0, hold.user] }], backend, |_| true)
}

impl Held for Backend {
    type Handed = Handed;

    fn hand(&self, _counter: usize) -> (Handed, Vec<BorrowedFd<'_>>) {
        let handed = match self.kind() {
            Kind::Taps => Handed::Taps {},
            Kind::Stream => Handed::Stream {},
        };
        (handed, self.fds().collect())
    }

    fn pidfd(&self) -> Option<BorrowedFd<'_>> {
        Backend::pidfd(self)
    }

    fn deadline(&self) -> Option<Instant> {
        Backend::deadline(self)
    }

    fn tick(&mut self, now: Instant) {
        Backend::tick(self, now);
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
        for network in [
            Network::Tap { name: "t0".into(), queues: 4 },
            Network::Macvtap { name: "m0".into(), queues: 1 },
            Network::Passt { program: "/usr/bin/passt".into(), mtu: 1400, user: 0, id: None },
        ] {
            let words = arguments("nic0", 7, &network);
            assert_eq!(words[..2], ["net", "hold"]);
            let parsed = Words::try_parse_from(words[1..].iter()).unwrap();
            assert_eq!((parsed.hold.network(), parsed.hold.user), (network, 7));
        }
        assert!(Words::try_parse_from(["hold", "--device", "a", "--user", "1"]).is_err());
    }

    #[test]
    fn every_process_is_given_the_same_descriptors_and_strangers_nothing() {
        let path = std::env::temp_dir().join(format!("bulkhead-holder-{}", std::process::id()));
        let me = nix::unistd::geteuid().as_raw();
        let serve_one = |users: &[u32]| {
            let counter = Counter { listener: Listener::bind(&path).unwrap(), users: users.to_vec() };
            let backend = Backend::open(
                "nic0",
                // It ends at once, which changes nothing here.
                &Network::Passt { program: "/bin/true".into(), mtu: 1500, user: 0, id: None },
            );
            let clients = [Peer::connect(&path).unwrap(), Peer::connect(&path).unwrap()];
            let mut rounds = 0;
            serve(&[counter], backend.unwrap(), |_| {
                rounds += 1;
                rounds <= 3
            })
            .unwrap();
            std::fs::remove_file(&path).unwrap();
            clients.map(|client| client.recv::<Handed>().ok())
        };
        let [first, second] = serve_one(&[me]).map(Option::unwrap);
        assert_eq!((first.0, second.0), (Handed::Stream {}, Handed::Stream {}));
        assert_eq!((first.1.len(), second.1.len()), (1, 1));
        let mut stream = UnixStream::from(first.1.into_iter().next().unwrap());
        // The other end is gone with the holder, for both of them: it was one stream.
        assert!(stream.write_all(b"x").is_err());
        assert!(serve_one(&[me + 1]).iter().all(Option::is_none));
    }
}
