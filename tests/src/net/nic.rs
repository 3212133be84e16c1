//! A NIC of a VM, as its command line has it.

use std::os::fd::OwnedFd;
use std::sync::Arc;

/// What the process may see of the guest's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Memory {
    /// Rings and the two buffers.
    Confined,
    /// All of it.
    Full,
}

/// Where frames go.
#[derive(Debug, Clone)]
pub enum Backend {
    /// A stream socket, as passt's.
    Stream(Arc<OwnedFd>),
    /// A TAP: a descriptor for each queue.
    Taps(Vec<Arc<OwnedFd>>),
    /// A TAP that the process opens itself, in the network namespace of the thread that starts it.
    TapNamed(String),
}

/// A NIC.
#[derive(Debug, Clone)]
pub struct Nic {
    /// Its address.
    pub mac: [u8; 6],
    /// Largest frame without its Ethernet header.
    pub mtu: u32,
    /// Queues that a guest can have.
    pub queues: u16,
    /// What the process may see.
    pub memory: Memory,
    /// Whether a guest may only send from its own address.
    pub antispoof: bool,
    /// Where frames go.
    pub backend: Backend,
}

impl Nic {
    /// One with a single queue and an MTU of 1500, confined.
    pub fn new(backend: Backend) -> Self {
        let mac = [0x02, 0xb0, 0x1c, 0xe4, 0xad, 0x01];
        Self { mac, mtu: 1500, queues: 1, memory: Memory::Confined, antispoof: false, backend }
    }

    /// What `bulkhead run` gives such a process, but for what every device process gets.
    pub(crate) fn arguments(&self) -> Vec<String> {
        let mac = self.mac.map(|byte| format!("{byte:02x}")).join(":");
        let (mtu, queues) = (self.mtu.to_string(), self.queues.to_string());
        let memory = if self.memory == Memory::Full { "full" } else { "confined" };
        let mut all =
            vec!["--mac", &mac, "--mtu", &mtu, "--memory", memory, "--link", "up", "--queues", &queues];
        if self.antispoof {
            all.push("--antispoof");
        }
        let mut all: Vec<String> = all.into_iter().map(str::to_owned).collect();
        match &self.backend {
            Backend::Stream(_) => all.extend(["--stream-fd".into(), "4".into()]),
            Backend::Taps(queues) => {
                let fds = (4..).take(queues.len()).flat_map(|fd: u32| ["--tap-fd".into(), fd.to_string()]);
                all.extend(fds);
            }
            Backend::TapNamed(name) => all.extend(["--tap".into(), name.clone()]),
        }
        all
    }

    pub(crate) fn descriptors(&self) -> Vec<Arc<OwnedFd>> {
        match &self.backend {
            Backend::Stream(fd) => vec![Arc::clone(fd)],
            Backend::Taps(fds) => fds.clone(),
            Backend::TapNamed(_) => Vec::new(),
        }
    }
}
