//! Two network namespaces with a TAP each.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::process::Command;
use std::sync::Arc;
use std::thread;

use anyhow::{Context, anyhow, ensure};
use nix::sched::{CloneFlags, setns};
use vsp_net::backend::{Backend, Offloads, TapQueues};
use vsp_net::oid::MAX_LSO;

/// Address of the stack at the host's end.
pub const HOST: &str = "10.118.0.1";
/// Address of the stack at the guest's end.
pub const GUEST: &str = "10.118.0.2";

/// A stack with one TAP, called `tap`.
#[derive(Debug)]
pub struct Stack {
    namespace: String,
    mac: [u8; 6],
    /// Open all the time: an interface whose TAP nobody has open is down for a moment when it is opened again.
    tap: Option<Arc<OwnedFd>>,
}

/// Both.
#[derive(Debug)]
pub struct Town {
    /// At whose TAP the NIC's process is.
    pub host: Stack,
    /// At whose TAP the guest is.
    pub guest: Stack,
}

impl Town {
    /// Makes them; only root can.
    pub fn new() -> anyhow::Result<Self> {
        let own = std::process::id();
        let host = Stack::new(&format!("bulkhead-{own}-host"), HOST, [2, 0, 0, 0, 0x76, 1])?;
        let guest = Stack::new(&format!("bulkhead-{own}-guest"), GUEST, [2, 0, 0, 0, 0x76, 2])?;
        // As netvsc has it from the device.
        guest.run(&format!("link set tap gso_max_size {MAX_LSO}"))?;
        // Nobody has to ask for addresses while something is measured.
        host.run(&format!("neighbour replace {GUEST} lladdr {} dev tap", guest.mac()))?;
        guest.run(&format!("neighbour replace {HOST} lladdr {} dev tap", host.mac()))?;
        Ok(Self { host, guest })
    }
}

impl Stack {
    fn new(namespace: &str, address: &str, mac: [u8; 6]) -> anyhow::Result<Self> {
        ip(&["netns", "add", namespace])?;
        let mut stack = Self { namespace: namespace.to_owned(), mac, tap: None };
        stack.run("link set lo up")?;
        stack.run("tuntap add dev tap mode tap vnet_hdr multi_queue")?;
        // No address of its own making, and nothing to be said about it.
        stack.run("link set tap addrgenmode none")?;
        let fds = stack.inside(|| Ok(bulkhead::net::tun::open_tap("tap", 1)?))?;
        stack.tap = fds.into_iter().next().map(Arc::new);
        stack.run(&format!("link set tap address {} up", stack.mac()))?;
        stack.run(&format!("address add {address}/24 dev tap"))?;
        Ok(stack)
    }

    /// The stack's hardware address.
    pub fn address(&self) -> [u8; 6] {
        self.mac
    }

    fn mac(&self) -> String {
        self.mac.map(|byte| format!("{byte:02x}")).join(":")
    }

    /// `ip` in there.
    pub fn run(&self, words: &str) -> anyhow::Result<()> {
        let mut all = vec!["-n", &self.namespace];
        all.extend(words.split_whitespace());
        ip(&all)
    }

    /// Does something in there, in a thread of its own.
    pub fn inside<T: Send>(&self, what: impl FnOnce() -> anyhow::Result<T> + Send) -> anyhow::Result<T> {
        let path = format!("/run/netns/{}", self.namespace);
        let enter = || {
            let namespace = File::open(&path).with_context(|| path.clone())?;
            setns(namespace, CloneFlags::CLONE_NEWNET).context("entering a network namespace")?;
            what()
        };
        thread::scope(|scope| scope.spawn(enter).join().map_err(|_| anyhow!("it panicked"))?)
    }

    /// The TAP, which gives frames with all their offloads.
    pub fn tap(&self) -> anyhow::Result<Arc<OwnedFd>> {
        let tap = self.tap.as_ref().context("the stack has no TAP")?;
        Backend::Tap(TapQueues::adopt(vec![tap.try_clone()?])?).set_offloads(Offloads::ALL)?;
        Ok(Arc::clone(tap))
    }

    /// Frames that the stack has had from its TAP.
    pub fn received(&self) -> anyhow::Result<u64> {
        let table = self.inside(|| Ok(std::fs::read_to_string("/proc/thread-self/net/dev")?))?;
        let line = table.lines().find_map(|line| line.trim().strip_prefix("tap:"));
        let packets = line.and_then(|line| line.split_whitespace().nth(1)).context("no such interface")?;
        Ok(packets.parse()?)
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        let _ = ip(&["netns", "del", &self.namespace]);
    }
}

fn ip(arguments: &[&str]) -> anyhow::Result<()> {
    let output = Command::new("ip").args(arguments).output().context("starting ip (Debian: iproute2)")?;
    ensure!(output.status.success(), "ip {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}
