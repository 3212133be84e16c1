//! Guests and devices that do anything in any order, and what has to hold all the same.

use std::collections::{BTreeMap, BTreeSet};

use vmbus::message::ModifyChannel;

use super::*;

/// Numbers that look random and are the same in every run (xorshift64*).
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u32) -> u32 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        ((self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % u64::from(sides)) as u32
    }
}

/// Channel numbers that guests name: two primary channels, their sub-channels, and none at all.
const RELIDS: u32 = 7;

/// Mostly one that is there.
fn any_channel(bus: &Bus, dice: &mut Dice) -> Relid {
    let there: Vec<Relid> = bus.channels.keys().copied().collect();
    if dice.roll(6) == 0 { 1 + dice.roll(RELIDS) } else { there[dice.roll(there.len() as u32) as usize] }
}

/// An answer that the guest waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Due {
    Version,
    Unload,
    OffersEnd,
    Opened(Relid),
    Created(u32),
    Torndown(u32),
    Modified(Relid),
}

fn answers(message: &HostMessage) -> Option<Due> {
    Some(match *message {
        HostMessage::VersionResponse(_) => Due::Version,
        HostMessage::UnloadResponse => Due::Unload,
        HostMessage::AllOffersDelivered => Due::OffersEnd,
        HostMessage::OpenResult(result) => Due::Opened(result.relid),
        HostMessage::GpadlCreated(created) => Due::Created(created.gpadl),
        HostMessage::GpadlTorndown(gpadl) => Due::Torndown(gpadl),
        HostMessage::ModifyChannelResponse { relid, .. } => Due::Modified(relid),
        HostMessage::Offer(_) | HostMessage::RescindOffer(_) => return None,
    })
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Device {
    Opening,
    Open,
    Closing,
}

struct World {
    bus: Bus,
    devices: BTreeMap<Relid, Device>,
    due: BTreeMap<Due, u32>,
    /// Channels opened and torn-down GPADLs, to see that the test does anything.
    done: (u32, u32),
    /// Sub-channels opened.
    subs: u32,
    /// GPADLs that devices have, and how many there were in all.
    shared: BTreeSet<u32>,
    shares: u32,
}

impl World {
    fn new() -> Self {
        let (devices, due, shared) = (BTreeMap::new(), BTreeMap::new(), BTreeSet::new());
        Self { bus: bus(), devices, due, done: (0, 0), subs: 0, shared, shares: 0 }
    }

    fn owe(&mut self, due: Due) {
        *self.due.entry(due).or_default() += 1;
    }

    /// Looks at all that the bus wants; `opening` is the channel that may be opened now.
    fn settle(&mut self, opening: Option<Relid>) {
        let effects = self.bus.take_effects();
        assert!(effects.len() <= 12, "{effects:?}");
        for effect in effects {
            match effect {
                Effect::Send(message) => {
                    let message = HostMessage::parse(&message).expect("our own message");
                    let Some(due) = answers(&message) else { continue };
                    let left = self.due.get_mut(&due).unwrap_or_else(|| panic!("{message:?} was not due"));
                    *left -= 1;
                    self.done.1 += u32::from(matches!(due, Due::Torndown(_)));
                    if *left == 0 {
                        self.due.remove(&due);
                    }
                    if matches!(due, Due::Version | Due::Unload) {
                        assert!(self.devices.is_empty(), "{due:?} while devices have pages");
                        assert!(self.shared.is_empty(), "{due:?} while devices have GPADLs");
                    }
                    if let Due::Torndown(gpadl) = due {
                        assert!(!self.shared.contains(&gpadl), "a device has it");
                    }
                }
                Effect::Discard => {}
                Effect::Open(open) => {
                    self.subs += u32::from(open.subchannel > 0);
                    assert_eq!(open.subchannel == 0, open.primary == open.relid);
                    assert_eq!(Some(open.relid), opening);
                    assert_eq!(self.devices.insert(open.relid, Device::Opening), None);
                }
                Effect::Close(relid) => {
                    assert!(
                        self.bus.primary_of(relid).is_some(),
                        "{relid} is forgotten while a device has it"
                    );
                    let was = self.devices.insert(relid, Device::Closing);
                    assert!(matches!(was, Some(Device::Opening | Device::Open)), "{was:?}");
                }
                Effect::Unshare(gpadl) => assert!(self.shared.remove(&gpadl), "{gpadl} is not shared"),
                Effect::Retarget(relid, vp) => {
                    assert!(vp < VPS);
                    assert_eq!(self.devices.get(&relid), Some(&Device::Open));
                }
            }
        }
        assert_eq!(self.bus.is_quiet(), self.devices.is_empty());
    }

    fn guest(&mut self, dice: &mut Dice) {
        let relid = any_channel(&self.bus, dice);
        // Mostly its own.
        let gpadl = if dice.roll(8) == 0 { dice.roll(8) } else { relid * 2 + dice.roll(2) };
        let mut opening = None;
        match dice.roll(16) {
            0 if dice.roll(8) == 0 || !matches!(self.bus.connection, Connection::Up { .. }) => {
                let version = Version::ALL[dice.roll(8) as usize];
                let vp = dice.roll(3);
                if say(&mut self.bus, GuestMessage::InitiateContact(InitiateContact::new(version, vp)))
                    .is_ok()
                {
                    // It starts anew: what came before is not answered any more.
                    self.due.retain(|_, _| false);
                    self.owe(Due::Version);
                }
            }
            1 if say(&mut self.bus, GuestMessage::RequestOffers).is_ok() => self.owe(Due::OffersEnd),
            2 if dice.roll(20) == 0 && say(&mut self.bus, GuestMessage::Unload).is_ok() => {
                self.due.retain(|due, _| matches!(due, Due::Torndown(_)));
                self.owe(Due::Unload);
            }
            3..6 => {
                let count = if dice.roll(4) == 0 { 1 + dice.roll(60) } else { 8 };
                let pfns: Vec<u64> = (0..count).map(|_| u64::from(dice.roll(5000))).collect();
                for message in vmbus::gpadl::messages(relid, gpadl, &pfns) {
                    match self.bus.message(MESSAGE_CONNECTION_ID_5, &message) {
                        Err(GuestFault::GpadlRefused { .. }) => self.owe(Due::Created(gpadl)),
                        Ok(()) if !self.bus.effects.is_empty() => self.owe(Due::Created(gpadl)),
                        _ => {}
                    }
                    self.settle(None);
                }
            }
            6..9 => {
                let vp = dice.roll(8) % (VPS + 1);
                let downstream = if dice.roll(8) == 0 { dice.roll(12) } else { 4 };
                let request = OpenChannel {
                    target_vp: vp,
                    downstream_page_offset: downstream,
                    ..open_request(relid, gpadl)
                };
                match say(&mut self.bus, GuestMessage::OpenChannel(request)) {
                    Ok(()) => {
                        opening = Some(relid);
                        self.owe(Due::Opened(relid));
                    }
                    Err(GuestFault::OpenRefused { .. }) => self.owe(Due::Opened(relid)),
                    Err(_) => {}
                }
            }
            9 => drop(say(&mut self.bus, GuestMessage::CloseChannel(relid))),
            10..12 => {
                if say(&mut self.bus, GuestMessage::GpadlTeardown { relid, gpadl }).is_ok() {
                    self.owe(Due::Torndown(gpadl));
                }
            }
            12 => {
                let target_vp = dice.roll(VPS + 1);
                let up = matches!(self.bus.connection, Connection::Up { version: Version::V5_3, .. });
                let _ = say(&mut self.bus, GuestMessage::ModifyChannel(ModifyChannel { relid, target_vp }));
                if up {
                    self.owe(Due::Modified(relid));
                }
            }
            13 => drop(say(&mut self.bus, GuestMessage::RelidReleased(relid))),
            _ => {
                // Well-formed headers with nonsense behind them. Lengths and kinds that could bring an answer are
                // left to the messages above.
                let mut bytes = vec![0; dice.roll(240) as usize];
                bytes.iter_mut().for_each(|b| *b = dice.roll(256) as u8);
                if let Some(kind) = bytes.first_mut() {
                    *kind = 30;
                }
                assert!(self.bus.message(MESSAGE_CONNECTION_ID_5, &bytes).is_err());
            }
        }
        self.settle(opening);
    }

    /// A device does what it was asked, or what it was not.
    fn device(&mut self, dice: &mut Dice) {
        let relid = any_channel(&self.bus, dice);
        match self.devices.get(&relid) {
            Some(Device::Opening) => {
                let status = dice.roll(2);
                if status == 0 {
                    self.done.0 += 1;
                    self.devices.insert(relid, Device::Open);
                } else {
                    self.devices.remove(&relid);
                }
                self.bus.opened(relid, status);
            }
            Some(Device::Closing) => {
                self.devices.remove(&relid);
                self.bus.closed(relid);
            }
            Some(Device::Open) if dice.roll(4) == 0 => {
                let gpadl = relid * 2 + dice.roll(2);
                if self.bus.share_gpadl(relid, gpadl).is_ok() {
                    self.shares += 1;
                    assert!(self.shared.insert(gpadl), "{gpadl} is shared twice");
                } else if dice.roll(4) == 0 {
                    // If it has it, it is done with it.
                    self.shared.remove(&gpadl);
                    self.bus.unshare_gpadl(relid, gpadl);
                }
            }
            Some(Device::Open) if dice.roll(3) < 2 => {
                assert!(self.bus.offer_subchannels(relid, dice.roll(3) as u16));
            }
            Some(Device::Open) | None => {
                self.bus.opened(relid, dice.roll(2));
                self.bus.closed(relid);
            }
        }
        self.settle(None);
    }
}

#[test]
fn whatever_happens_requests_are_answered_once_and_the_bus_gets_quiet() {
    let (mut done, mut sub_opens, mut shares) = ((0, 0), 0, 0);
    for seed in 1..=400 {
        let mut dice = Dice(seed);
        let mut world = World::new();
        for _ in 0..1000 {
            match dice.roll(60) {
                0 => {
                    world.bus.reset();
                    world.due.clear();
                    world.settle(None);
                }
                1..16 => world.device(&mut dice),
                _ => world.guest(&mut dice),
            }
        }
        // Devices answer what they were asked; then nothing is due any more.
        while world.devices.values().any(|d| *d != Device::Open) {
            world.device(&mut dice);
        }
        assert!(world.due.is_empty(), "seed {seed}: {:?}", world.due);
        world.bus.reset();
        world.due.clear();
        world.settle(None);
        assert!(world.shared.is_empty(), "seed {seed}: a reset takes everything back at once");
        while !world.devices.is_empty() {
            world.device(&mut dice);
        }
        assert!(world.bus.is_quiet(), "seed {seed}");
        let subs = |bus: &Bus| bus.channels.values().filter(|c| c.primary.is_some()).count();
        assert_eq!(subs(&world.bus), 0, "seed {seed}: sub-channels outlive their guest");
        sub_opens += world.subs;
        shares += world.shares;
        done = (done.0 + world.done.0, done.1 + world.done.1);
    }
    assert!(done.0 > 1000 && done.1 > 1000, "{done:?} is too little to mean anything");
    assert!(shares > 50, "{shares} is too little to mean anything");
    assert!(sub_opens > 50, "{sub_opens} is too little to mean anything");
}
