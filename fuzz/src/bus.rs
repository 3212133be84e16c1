//! The core's VMBus server: its state machine under a guest, and devices, that do anything in any order.

use std::collections::{BTreeMap, BTreeSet};

use core_vmm::bus::{Bus, Effect, Open};
use vmbus::gpadl;
use vmbus::guid::class;
use vmbus::message::{GuestMessage, HostMessage, InitiateContact, ModifyChannel, OpenChannel};
use vmbus::protocol::Version;
use vmbus::synic::{MESSAGE_CONNECTION_ID, MESSAGE_CONNECTION_ID_5};

use crate::Script;

const VPS: u32 = 2;
const RAM_PAGES: u64 = 256;

/// What the harness knows of the world that the bus believes in.
#[derive(Default)]
struct World {
    /// Channels whose device holds the ring pages: from [`Effect::Open`] until the harness says that it was refused
    /// or closed. With the GPADL that the guest named. (That rings overlap is found when pages are donated.)
    held: BTreeMap<u32, u32>,
    /// Channels whose opening has not been answered.
    opening: BTreeSet<u32>,
    /// Channels that were told to close and have not been closed.
    closing: BTreeSet<u32>,
}

impl World {
    fn opened(&mut self, open: &Open, gpadl: Option<u32>) {
        let Some(gpadl) = gpadl else { panic!("a channel is opened that the guest did not ask for") };
        assert!(open.target_vp < VPS);
        assert!(open.to_host_pages >= 2 && open.pages.len() as u64 >= u64::from(open.to_host_pages) + 2);
        assert!(self.held.insert(open.relid, gpadl).is_none(), "channel opened twice");
        self.opening.insert(open.relid);
    }

    fn check(&mut self, bus: &mut Bus, gpadl: Option<u32>) {
        let effects = bus.take_effects();
        assert!(effects.len() <= 32, "one event has {} effects", effects.len());
        for effect in effects {
            match effect {
                Effect::Open(open) => self.opened(&open, gpadl),
                Effect::Discard => {}
                Effect::Close(relid) => {
                    assert!(self.held.contains_key(&relid), "a channel is closed that no device has");
                    assert!(self.closing.insert(relid), "a channel is closed twice");
                }
                // No device of this harness asks for any.
                Effect::Unshare(gpadl) => panic!("GPADL {gpadl} is taken back from nobody"),
                Effect::Retarget(relid, vp) => assert!(vp < VPS && self.held.contains_key(&relid)),
                Effect::Send(message) => match HostMessage::parse(&message).expect("our own message") {
                    HostMessage::GpadlTorndown(gpadl) => {
                        assert!(
                            self.held.values().all(|&held| held != gpadl),
                            "torn down while a device has it"
                        );
                    }
                    HostMessage::UnloadResponse => {
                        assert!(self.held.is_empty(), "unloaded with open channels")
                    }
                    _ => {}
                },
            }
        }
        assert!(!bus.is_quiet() || self.held.is_empty());
    }
}

/// A script of messages and of answers by devices.
pub fn bus(data: &[u8]) {
    let mut bus = Bus::new(VPS, RAM_PAGES);
    let mut world = World::default();
    for instance in [class::ECHO, class::SCSI, class::NETWORK] {
        assert!(bus.add_channel(class::ECHO, instance, |_| {}).is_some());
    }
    world.check(&mut bus, None);
    let mut script = Script::new(data);
    while let Some(()) = step(&mut script, &mut bus, &mut world) {}
    // Whatever was done: after a reset, and with devices that let go, nothing is left.
    bus.reset();
    world.check(&mut bus, None);
    for relid in std::mem::take(&mut world.opening) {
        bus.opened(relid, 0);
        world.check(&mut bus, None);
    }
    for relid in std::mem::take(&mut world.closing) {
        world.held.remove(&relid);
        bus.closed(relid);
        world.check(&mut bus, None);
    }
    assert!(world.held.is_empty(), "a device was never told to let go");
    assert!(bus.is_quiet());
}

fn step(script: &mut Script<'_>, bus: &mut Bus, world: &mut World) -> Option<()> {
    let kind = script.byte()?;
    let mut small = || script.byte().map(u32::from);
    let message = match kind % 16 {
        0 => {
            let version = Version::ALL[small()? as usize % Version::ALL.len()];
            GuestMessage::InitiateContact(InitiateContact::new(version, small()? % 3)).encode()
        }
        1 => GuestMessage::RequestOffers.encode(),
        2 => {
            let (relid, gpadl, first, count) = (small()?, small()?, small()?, small()?);
            let pfns: Vec<u64> = (first..first + count.clamp(1, 60)).map(u64::from).collect();
            for message in gpadl::messages(relid, gpadl, &pfns) {
                let _ = bus.message(MESSAGE_CONNECTION_ID, &message);
                world.check(bus, None);
            }
            return Some(());
        }
        3 => GuestMessage::OpenChannel(OpenChannel {
            relid: small()?,
            open_id: 7,
            ring_gpadl: small()?,
            target_vp: small()?,
            downstream_page_offset: small()?,
            user_data: [0; 120],
        })
        .encode(),
        4 => GuestMessage::CloseChannel(small()?).encode(),
        5 => GuestMessage::GpadlTeardown { relid: small()?, gpadl: small()? }.encode(),
        6 => GuestMessage::ModifyChannel(ModifyChannel { relid: small()?, target_vp: small()? }).encode(),
        7 => GuestMessage::RelidReleased(small()?).encode(),
        8 => GuestMessage::Unload.encode(),
        9 => {
            let relid = small()?;
            let status = small()? & 1;
            if world.opening.remove(&relid) {
                if status != 0 && !world.closing.contains(&relid) {
                    world.held.remove(&relid);
                }
                bus.opened(relid, status);
                world.check(bus, None);
            }
            return Some(());
        }
        10 => {
            let relid = small()?;
            if world.closing.contains(&relid) && !world.opening.contains(&relid) {
                world.closing.remove(&relid);
                world.held.remove(&relid);
                bus.closed(relid);
                world.check(bus, None);
            }
            return Some(());
        }
        11 => {
            bus.reset();
            world.check(bus, None);
            return Some(());
        }
        12 => {
            bus.rescind(small()?);
            world.check(bus, None);
            return Some(());
        }
        13 => {
            let (relid, count) = (small()?, small()? % 8);
            let was = bus.primary_of(relid);
            bus.offer_subchannels(relid, count as u16);
            assert_eq!(bus.primary_of(relid), was);
            world.check(bus, None);
            return Some(());
        }
        _ => {
            let raw = script.string()?;
            let gpadl = asked_for(raw);
            let _ = bus.message(MESSAGE_CONNECTION_ID_5, raw);
            world.check(bus, gpadl);
            return Some(());
        }
    };
    let _ = bus.message(MESSAGE_CONNECTION_ID_5, &message);
    world.check(bus, asked_for(&message));
    Some(())
}

/// The ring's GPADL, if the message asks to open a channel.
fn asked_for(message: &[u8]) -> Option<u32> {
    match GuestMessage::parse(message) {
        Ok(GuestMessage::OpenChannel(open)) => Some(open.ring_gpadl),
        _ => None,
    }
}
