//! A host in plain memory for the tests of this crate: it answers in the call that asks, on one processor, and has
//! an echo device and a SCSI controller with one small disk. The real host is tested elsewhere, with this crate.

mod disk;

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use vmbus::gpadl::{Assembly, GpadlRange, Limits, Progress};
use vmbus::guid::{Guid, class};
use vmbus::message::{GpadlCreated, GuestMessage, HostMessage, Offer, OpenResult, VersionResponse};
use vmbus::packet::Outgoing;
use vmbus::protocol::Version;
use vmbus::ring::testing::TestRing;
use vmbus::ring::{RingReader, RingWriter};

use crate::client::{Client, Options};
use crate::platform::{BoxError, Platform, PostError};
use disk::Disk;

pub const PATIENCE: Duration = Duration::from_secs(5);
const LIMITS: Limits = Limits { ranges: 1, pages: 1024 };
const MEMORY: usize = 4 << 20;
/// Devices by relid - 1; connection ids are relids + 100. What follows are sub-channels of the last one.
const DEVICES: [Guid; 2] = [class::ECHO, class::SCSI];

#[derive(Clone, Copy)]
enum Device {
    Echo,
    Disk,
}

struct Open {
    device: Device,
    reader: RingReader<TestRing>,
    writer: RingWriter<TestRing>,
}

struct State {
    newest: Version,
    memory: Vec<u8>,
    next_page: u64,
    messages: VecDeque<Vec<u8>>,
    flags: Vec<u32>,
    interrupts: u64,
    rings: HashMap<u64, TestRing>,
    assembly: Option<Assembly>,
    gpadls: HashMap<u32, GpadlRange>,
    open: HashMap<u32, Open>,
    /// All channels of the controller lead to it.
    disk: Disk,
}

pub struct FakeHost {
    state: Mutex<State>,
    interrupt: Condvar,
}

impl FakeHost {
    pub fn new(newest: Version) -> Arc<Self> {
        let state = State {
            newest,
            memory: vec![0; MEMORY],
            next_page: 1,
            messages: VecDeque::new(),
            flags: Vec::new(),
            interrupts: 0,
            rings: HashMap::new(),
            assembly: None,
            gpadls: HashMap::new(),
            open: HashMap::new(),
            disk: Disk::default(),
        };
        Arc::new(Self { state: Mutex::new(state), interrupt: Condvar::new() })
    }

    pub fn pages_shared(&self) -> usize {
        self.state().gpadls.values().map(|range| range.pfns.len()).sum()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn say(&mut self, message: HostMessage) {
        self.messages.push_back(message.encode().to_vec());
        self.interrupts += 1;
    }

    fn hear(&mut self, message: &[u8]) {
        match GuestMessage::parse(message).expect("an honest guest") {
            GuestMessage::InitiateContact(contact) => {
                let accepted = Version::negotiate(contact.version, self.newest).is_some();
                let response =
                    if accepted { VersionResponse::accepted(7) } else { VersionResponse::refused() };
                self.say(HostMessage::VersionResponse(response));
            }
            GuestMessage::RequestOffers => {
                for (relid, class) in (1..).zip(DEVICES) {
                    self.say(HostMessage::Offer(Offer::new(class, class, relid, relid + 100)));
                }
                self.say(HostMessage::AllOffersDelivered);
            }
            GuestMessage::GpadlHeader(header) => {
                let progress = Assembly::begin(&header, LIMITS).expect("an honest guest");
                self.gpadl(header.gpadl, progress);
            }
            GuestMessage::GpadlBody(body) => {
                let assembly = self.assembly.take().expect("a header came first");
                self.gpadl(body.gpadl, assembly.append(&body).expect("an honest guest"));
            }
            GuestMessage::GpadlTeardown { gpadl, .. } => {
                self.gpadls.remove(&gpadl).expect("a GPADL");
                self.say(HostMessage::GpadlTorndown(gpadl));
            }
            GuestMessage::OpenChannel(open) => {
                let first = self.gpadls[&open.ring_gpadl].pfns[0];
                let ring = |page: u64| self.rings[&(page * 4096)].clone();
                let reader = RingReader::new(ring(first)).expect("good");
                let writer =
                    RingWriter::new(ring(first + u64::from(open.downstream_page_offset))).expect("good");
                let device = match DEVICES.get(open.relid as usize - 1) {
                    Some(&class::ECHO) => Device::Echo,
                    _ => Device::Disk,
                };
                self.open.insert(open.relid, Open { device, reader, writer });
                let result = OpenResult { relid: open.relid, open_id: open.open_id, status: 0 };
                self.say(HostMessage::OpenResult(result));
            }
            GuestMessage::CloseChannel(relid) => drop(self.open.remove(&relid).expect("an open channel")),
            GuestMessage::ModifyChannel(modify) if self.newest.answers_modify_channel() => {
                self.say(HostMessage::ModifyChannelResponse { relid: modify.relid, status: 0 });
            }
            GuestMessage::Unload => self.say(HostMessage::UnloadResponse),
            GuestMessage::ModifyChannel(_) | GuestMessage::RelidReleased(_) | GuestMessage::TlConnect(_) => {}
        }
    }

    fn gpadl(&mut self, gpadl: u32, progress: Progress) {
        match progress {
            Progress::Partial(assembly) => self.assembly = Some(assembly),
            Progress::Complete(ranges) => {
                self.gpadls.extend(ranges.into_iter().map(|range| (gpadl, range)));
                self.say(HostMessage::GpadlCreated(GpadlCreated { relid: 0, gpadl, status: 0 }));
            }
        }
    }

    fn serve(&mut self, relid: u32) {
        let open = self.open.get_mut(&relid).expect("an open channel");
        let mut scratch = Vec::new();
        while let Some(header) = open.reader.next(&mut scratch).expect("an honest guest") {
            let answer = match open.device {
                Device::Echo => header.payload(&scratch).to_vec(),
                Device::Disk => self.disk.serve(&header, &scratch, &mut self.memory),
            };
            open.writer.push(&Outgoing::completion(header.transaction_id), &[&answer]).expect("room");
        }
        let _ = open.reader.publish();
        if open.writer.publish() {
            self.flags.push(relid);
            self.interrupts += 1;
        }
        for index in self.disk.new_sub_channels() {
            let relid = DEVICES.len() as u32 + u32::from(index);
            let mut offer = Offer::new(class::SCSI, class::SCSI, relid, relid + 100);
            offer.sub_channel_index = index;
            self.say(HostMessage::Offer(offer));
        }
    }
}

impl Platform for FakeHost {
    type Ring = TestRing;

    fn vp_count(&self) -> u32 {
        2
    }

    fn post_message(&self, connection: u32, message: &[u8]) -> Result<(), PostError> {
        let since_5_0 = GuestMessage::parse(message).is_ok_and(|message| match message {
            GuestMessage::InitiateContact(contact) => contact.version >= Version::V5_0.raw(),
            _ => self.state().newest >= Version::V5_0,
        });
        let contact = message[0] == 14;
        let due = if !since_5_0 {
            1
        } else if contact {
            4
        } else {
            7
        };
        if connection != due {
            return Err(PostError::Status(18));
        }
        self.state().hear(message);
        self.interrupt.notify_all();
        Ok(())
    }

    fn signal_event(&self, connection: u32) -> Result<(), BoxError> {
        self.state().serve(connection - 100);
        self.interrupt.notify_all();
        Ok(())
    }

    fn take_message(&self, vp: u32) -> Result<Option<Vec<u8>>, BoxError> {
        assert_eq!(vp, 0);
        Ok(self.state().messages.pop_front())
    }

    fn take_event(&self, _vp: u32, flag: u32) -> bool {
        let flags = &mut self.state().flags;
        let before = flags.len();
        flags.retain(|&set| set != flag);
        flags.len() < before
    }

    fn interrupts(&self, _vp: u32) -> u64 {
        self.state().interrupts
    }

    fn wait_interrupt(&self, _vp: u32, seen: u64, timeout: Duration) {
        let state = self.state();
        drop(self.interrupt.wait_timeout_while(state, timeout, |state| state.interrupts == seen));
    }

    fn allocate(&self, pages: u32) -> Result<u64, BoxError> {
        let mut state = self.state();
        let address = state.next_page * 4096;
        state.next_page += u64::from(pages);
        if state.next_page as usize * 4096 > MEMORY { Err("out of memory".into()) } else { Ok(address) }
    }

    fn release(&self, _address: u64, _pages: u32) {}

    fn read(&self, address: u64, into: &mut [u8]) {
        into.copy_from_slice(&self.state().memory[address as usize..][..into.len()]);
    }

    fn write(&self, address: u64, from: &[u8]) {
        self.state().memory[address as usize..][..from.len()].copy_from_slice(from);
    }

    fn ring(&self, address: u64, pages: u32) -> Result<TestRing, BoxError> {
        let ring = TestRing::new(pages - 1);
        self.state().rings.insert(address, ring.clone());
        Ok(ring)
    }
}

/// A host and a guest that is connected to it.
pub fn connected() -> (Arc<FakeHost>, Client<FakeHost>) {
    let host = FakeHost::new(Version::NEWEST);
    let client = Client::connect(Arc::clone(&host), Options::default()).expect("connected");
    (host, client)
}

/// The offer of a class of device.
pub fn offered(client: &mut Client<FakeHost>, class: Guid) -> Offer {
    let offers = client.request_offers().expect("offers");
    offers.into_iter().find(|offer| offer.class == class).expect("the device is offered")
}
