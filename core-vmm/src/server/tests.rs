//! The server between a guest and device processes that are both the test: over real sockets and memory, on one thread.

mod controls;
mod deaths;
mod early;
mod hotplug;
mod mappings;
mod memory;
mod operators;
mod passthrough;
mod peers;
mod prepare;
mod rings;
mod subchannels;
mod swaps;

use std::os::fd::{AsRawFd, OwnedFd};

use ipc::{
    message::{Offer as DeviceOffer, PREPARE_VERSION, RingLayout, STATUS_LEDGER, ToCore, ToVsp, Versions},
    operator::{Reply, Request},
    shm::SharedMemory,
    socket::{Listener, SocketError},
};
use vmbus::{
    guid::class,
    message::{
        Encoded, GuestMessage, HostMessage, InitiateContact, ModifyChannel, OpenChannel, OpenResult,
        VersionResponse,
    },
    protocol::Version,
    synic::MESSAGE_CONNECTION_ID_5,
};

use super::{
    device::{CLOSE_GRACE, OPEN_GRACE},
    operator::OPERATORS_MAX,
    peers::STRANGERS_MAX,
    slot::{ADOPT_GRACE, FENCE_GRACE, GHOST_GRACE, QUIESCE_GRACE},
    *,
};
use crate::{
    bus::{Relid, STATUS_UNSUCCESSFUL},
    testing::{Mock, registers, take_message},
};

const VPS: u32 = 2;
const RAM: u64 = 4 << 20;
/// Where ring `n` of the tests' guest lies, in pages.
const RINGS: u64 = 0x200;

fn own_uid() -> u32 {
    nix::unistd::getuid().as_raw()
}

fn slot(name: &str) -> DeviceSlot {
    let instance = format!("b01ce4ad-0000-4000-8000-{:012x}", name.len());
    let (uid, device_memory) = (None, 0);
    let name = name.into();
    DeviceSlot { name, instance, uid, guest_ram: false, fetch: false, device_memory, passthrough: false }
}

/// One whose process can reach guest memory.
fn disk(name: &str) -> DeviceSlot {
    DeviceSlot { guest_ram: true, ..slot(name) }
}

const LEDGER: u64 = 1 << 20;

fn offer() -> DeviceOffer {
    DeviceOffer { class: class::ECHO.to_string(), max_subchannels: 3, ..DeviceOffer::default() }
}

fn hello_of(device: &str, offer: DeviceOffer, ledger: u64) -> ToCore {
    // What is said ahead of time is the business of `prepare` and `early`.
    let versions = Versions { max: PREPARE_VERSION - 1, ..VERSIONS };
    ToCore::Hello { versions, device: device.into(), offer, ledger, build: "1.0".into() }
}

fn hello(device: &str) -> ToCore {
    hello_of(device, offer(), LEDGER)
}

struct Rig {
    ram: Ram,
    mock: Mock,
    server: Server,
}

impl Rig {
    /// Slots "a" and "bb", nobody attached, the guest's SynIC on.
    fn new() -> Self {
        Self::with(vec![slot("a"), slot("bb")], vec![own_uid()])
    }

    fn with(slots: Vec<DeviceSlot>, trusted: Vec<u32>) -> Self {
        let ram = Ram::new(RAM, false).unwrap();
        let server = Server::new("vm", ram.clone(), VPS, &slots, trusted).unwrap();
        let mut rig = Self { ram, mock: Mock::new(VPS as usize), server };
        (0..VPS).for_each(|vp| rig.server.set_synic(&rig.mock, vp, registers(vp)));
        rig
    }

    /// Somebody connects; the answer to its first message has been sent.
    fn meet(&mut self, first: &ToCore) -> Peer {
        let (ours, theirs) = Peer::pair().unwrap();
        theirs.send(first, &[]).unwrap();
        let fd = ours.as_raw_fd();
        self.server.add_stranger(ours);
        self.server.peer_ready(&self.mock, fd);
        theirs
    }

    /// A process attaches and serves.
    fn attach(&mut self, name: &str) -> Peer {
        let peer = self.arrive(name, false);
        self.serve(&peer, false);
        peer
    }

    /// Another one does, after the last has gone.
    fn attach_again(&mut self, name: &str) -> Peer {
        let peer = self.arrive(name, false);
        self.serve(&peer, true);
        peer
    }

    /// A process attaches. Whether it has to stand by is as expected.
    fn arrive(&mut self, name: &str, standby: bool) -> Peer {
        let peer = self.meet(&hello(name));
        let Some((ToVsp::Welcome { standby: told, .. }, _)) = told(&peer) else { panic!("not welcome") };
        assert_eq!(told, standby);
        peer
    }

    /// A process has been told to serve, and does.
    fn serve(&mut self, process: &Peer, predecessor: bool) {
        assert_eq!(said(process), Some(ToVsp::Serve { predecessor }));
        self.says(process, &ToCore::Serving {});
    }

    /// A process says something, and the core hears it.
    fn says(&mut self, process: &Peer, message: &ToCore) {
        process.send(message, &[]).unwrap();
        self.poll();
    }

    fn answers(&mut self, process: &Peer, channel: Relid, status: u32) {
        self.says(process, &ToCore::OpenResult { channel, status, reason: Some("because".into()) });
    }

    /// An operator connects.
    fn operator(&mut self) -> Peer {
        self.meet(&ToCore::Operator { versions: VERSIONS })
    }

    /// What it asks is heard; the answer may come later.
    fn asks(&mut self, operator: &Peer, request: &Request) {
        operator.send(request, &[]).unwrap();
        self.poll();
    }

    fn is_bound(&self, relid: Relid) -> bool {
        self.mock.bells.borrow().contains_key(&Bus::connection_id(relid))
    }

    fn closes(&mut self, relid: Relid) {
        self.post(GuestMessage::CloseChannel(relid));
    }

    /// Devices "a" (relid 1) and "bb" (relid 2) attached, and the guest connected.
    fn running() -> (Self, Peer, Peer) {
        let mut rig = Self::new();
        let (a, b) = (rig.attach("a"), rig.attach("bb"));
        rig.contact();
        rig.post(GuestMessage::RequestOffers);
        assert_eq!(rig.heard().len(), 3);
        (rig, a, b)
    }

    fn contact(&mut self) {
        self.post(GuestMessage::InitiateContact(InitiateContact::new(Version::NEWEST, 0)));
        let yes = HostMessage::VersionResponse(VersionResponse::accepted(MESSAGE_CONNECTION_ID_5));
        assert_eq!(self.heard(), [yes]);
    }

    fn post(&mut self, message: GuestMessage<'_>) {
        self.post_raw(&message.encode());
    }

    fn post_raw(&mut self, message: &[u8]) {
        let status = self.server.post_message(&self.mock, MESSAGE_CONNECTION_ID_5, message);
        assert_eq!(status, HvStatus::Success);
    }

    /// All messages that the guest has, taken one by one.
    fn heard(&mut self) -> Vec<HostMessage> {
        let mut all = Vec::new();
        while let Some((message, pending)) = take_message(&self.ram, 0) {
            all.push(message);
            if pending {
                self.server.end_of_message(&self.mock, 0);
            }
        }
        all
    }

    /// Sockets that are readable are read, as the main loop does.
    fn poll(&mut self) {
        let fds: Vec<RawFd> = self.server.peers().map(|p| p.as_raw_fd()).collect();
        fds.into_iter().for_each(|fd| self.server.peer_ready(&self.mock, fd));
    }

    /// The guest shares 8 pages and asks for channel `relid` to be opened over them.
    fn ask_open(&mut self, relid: Relid, gpadl: u32) {
        let first = RINGS + u64::from(gpadl) * 8;
        self.ask_open_of(relid, gpadl, &(first..first + 8).collect::<Vec<_>>());
    }

    fn ask_open_of(&mut self, relid: Relid, gpadl: u32, pfns: &[u64]) {
        let messages: Vec<Encoded> = vmbus::gpadl::messages(relid, gpadl, pfns);
        messages.iter().for_each(|m| self.post_raw(m));
        assert!(matches!(self.heard().as_slice(), [HostMessage::GpadlCreated(c)] if c.status == 0));
        self.post(GuestMessage::OpenChannel(OpenChannel {
            relid,
            open_id: 5,
            ring_gpadl: gpadl,
            target_vp: 1,
            downstream_page_offset: 4,
            user_data: [3; 120],
        }));
    }

    /// Opens channel `relid`, served by `device`. Returns the descriptors that the device got.
    fn open(&mut self, device: &Peer, relid: Relid, gpadl: u32) -> Vec<OwnedFd> {
        self.ask_open(relid, gpadl);
        let fds = asked_to_open(device, relid);
        self.answers(device, relid, 0);
        assert_eq!(self.heard(), [opened(relid, 0)]);
        fds
    }

    /// Whether pages of ring `gpadl` are shared with a device now.
    fn is_shared(&mut self, gpadl: u32) -> bool {
        let gpa = (RINGS + u64::from(gpadl) * 8) * PAGE;
        match self.server.donations.donate(&self.ram, "probe", vec![gpa], &self.mock) {
            Ok(probe) => {
                self.server.donations.take_back(&self.ram, probe, &self.mock).unwrap();
                false
            }
            Err(_) => true,
        }
    }
}

/// What the core has told a device, if anything; but for the word that it has all channels, which is most tests' concern not at all.
fn told(device: &Peer) -> Option<(ToVsp, Vec<OwnedFd>)> {
    loop {
        match device.try_recv() {
            Ok((ToVsp::Adopted {}, _)) => {}
            Ok(received) => return Some(received),
            Err(SocketError::WouldBlock) => return None,
            Err(e) => panic!("{e}"),
        }
    }
}

/// The very next thing that the core has told a device.
fn told_next(device: &Peer) -> Option<ToVsp> {
    device.try_recv().ok().map(|(message, _)| message)
}

fn said(device: &Peer) -> Option<ToVsp> {
    told(device).map(|(message, _)| message)
}

/// The answer, or the news, that an operator has got.
fn reply(operator: &Peer) -> Option<Reply> {
    match operator.try_recv() {
        Ok((reply, _)) => Some(reply),
        Err(SocketError::WouldBlock) => None,
        Err(e) => panic!("{e}"),
    }
}

fn asked_to_open(device: &Peer, relid: Relid) -> Vec<OwnedFd> {
    asked_to_open_at(device, relid, 1)
}

fn asked_to_open_at(device: &Peer, relid: Relid, vp: u32) -> Vec<OwnedFd> {
    let Some((ToVsp::ChannelOpen { channel, ring, target_vp, flag, user_data, .. }, fds)) = told(device)
    else {
        panic!("no request to open came")
    };
    assert_eq!((channel, flag, target_vp, fds.len()), (relid, relid, vp, 5));
    assert_eq!((ring, user_data), (RingLayout { pages: 8, to_host_pages: 4 }, vec![3; 120]));
    fds
}

/// Two descriptors of the same file.
fn same(a: &OwnedFd, b: &OwnedFd) -> bool {
    let stat = |fd: &OwnedFd| nix::sys::stat::fstat(fd).map(|s| (s.st_dev, s.st_ino)).unwrap();
    stat(a) == stat(b)
}

fn is_cut_off(device: &Peer) -> bool {
    loop {
        match device.try_recv::<ToVsp>() {
            Err(SocketError::Closed) => return true,
            Err(SocketError::WouldBlock) => return false,
            _ => {}
        }
    }
}

fn opened(relid: Relid, status: u32) -> HostMessage {
    HostMessage::OpenResult(OpenResult { relid, open_id: 5, status })
}
