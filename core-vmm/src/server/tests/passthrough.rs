//! What a process has of the core that passes a device of the host's through.

use std::os::fd::BorrowedFd;

use ipc::{
    event::Doorbell,
    message::{MAX_INTERRUPTS, MAX_KEPT, MAX_REGIONS, MAX_TRAPS},
};

use super::*;
use crate::{
    hypercall::{Retarget, device_id},
    layout::VMBUS_LOW_MMIO,
    partition::Target,
};

const GPA: u64 = VMBUS_LOW_MMIO.0;
const NOTHING: Option<u64> = Some(u64::MAX);

fn hello_now(device: &str) -> ToCore {
    ToCore::Hello {
        versions: VERSIONS,
        device: device.into(),
        offer: offer(),
        ledger: LEDGER,
        build: String::new(),
    }
}

fn memory(pages: u64) -> SharedMemory {
    SharedMemory::create("test-device", pages * PAGE).unwrap()
}

/// Somebody attaches and serves; what is kept for it.
fn attach(rig: &mut Rig, name: &str, predecessor: bool) -> (Peer, Vec<(u32, String, Vec<OwnedFd>)>) {
    let peer = rig.meet(&hello_now(name));
    assert!(matches!(said(&peer), Some(ToVsp::Welcome { .. })));
    let mut kept = Vec::new();
    loop {
        match told(&peer) {
            Some((ToVsp::Kept { key, note }, fds)) => kept.push((key, note, fds)),
            Some((ToVsp::Serve { predecessor: p }, _)) if p == predecessor => break,
            other => panic!("{other:?}"),
        }
    }
    rig.says(&peer, &ToCore::Serving {});
    (peer, kept)
}

/// Channels 1 of "a", which may pass something through, and 2 of "bb", which may not, open.
fn ready() -> (Rig, Peer, Peer) {
    let slots = vec![DeviceSlot { passthrough: true, ..slot("a") }, slot("bb")];
    let mut rig = Rig::with(slots, vec![own_uid()]);
    let (a, b) = (attach(&mut rig, "a", false).0, attach(&mut rig, "bb", false).0);
    rig.contact();
    rig.post(GuestMessage::RequestOffers);
    rig.heard();
    rig.open(&a, 1, 1);
    rig.open(&b, 2, 2);
    (rig, a, b)
}

/// The next process of "a", up to its channel, and what it is told before that.
fn succeed(rig: &mut Rig) -> (Peer, Vec<ToVsp>) {
    let (next, _) = attach(rig, "a", true);
    let mut before = Vec::new();
    loop {
        match said(&next) {
            Some(ToVsp::ChannelOpen { .. }) => break,
            Some(other) => before.push(other),
            None => panic!("no channel came"),
        }
    }
    rig.answers(&next, 1, 0);
    (next, before)
}

impl Rig {
    fn sends(&mut self, device: &Peer, message: &ToCore, fds: &[BorrowedFd<'_>]) {
        device.send(message, fds).unwrap();
        self.poll();
    }

    fn region(&mut self, device: &Peer, gpa: u64, pages: u64, offset: u64, file: &SharedMemory) -> bool {
        self.sends(device, &ToCore::MapRegion { gpa, bytes: pages * PAGE, offset }, &[file.as_fd()]);
        match said(device) {
            Some(ToVsp::MemoryMapped { gpa: g, result }) if g == gpa => result.is_ok(),
            other => panic!("{other:?}"),
        }
    }

    fn trap(&mut self, device: &Peer, gpa: u64, bytes: u64) -> bool {
        self.sends(device, &ToCore::Trap { gpa, bytes }, &[]);
        match said(device) {
            Some(ToVsp::Trapped { gpa: g, result }) if g == gpa => result.is_ok(),
            other => panic!("{other:?}"),
        }
    }

    fn interrupt(&mut self, device: &Peer, id: u32, vector: u8, vp: u32, fds: &[BorrowedFd<'_>]) -> bool {
        self.sends(device, &ToCore::Interrupt { id, vector, vp }, fds);
        match said(device) {
            Some(ToVsp::InterruptReady { id: i, result }) if i == id => result.is_ok(),
            other => panic!("{other:?}"),
        }
    }

    fn read(&mut self, vp: u32, gpa: u64) -> Option<u64> {
        self.server.access(&self.mock, vp, gpa, 4, None)
    }

    /// Accesses that were answered since.
    fn answered(&self) -> Vec<(u32, u64)> {
        std::mem::take(&mut *self.mock.accesses.borrow_mut())
    }

    fn shown(&self) -> Vec<u64> {
        self.mock.mapped.borrow().keys().copied().collect()
    }

    fn routes(&self) -> Vec<Target> {
        self.mock.routes.borrow().values().map(|(target, _)| *target).collect()
    }

    fn retarget(&mut self, device: u32, data: u32, vector: u32, vp: u32) -> HvStatus {
        self.server.retarget_interrupt(&self.mock, &Retarget { device, data, vector, vp })
    }
}

fn asked(device: &Peer) -> u64 {
    match said(device) {
        Some(ToVsp::Access { id, .. }) => id,
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_is_kept_goes_from_process_to_process() {
    let (mut rig, a, _b) = ready();
    let files: Vec<_> = (0..16).map(|_| memory(1)).collect();
    let fds: Vec<_> = files.iter().map(AsFd::as_fd).collect();
    let keep = |key, note: &str| ToCore::Keep { key, note: note.into() };
    rig.sends(&a, &keep(7, "first"), &fds[..2]);
    rig.sends(&a, &keep(7, "second"), &fds);
    rig.sends(&a, &keep(1, ""), &fds[..1]);
    rig.sends(&a, &keep(9, ""), &fds[..1]);
    rig.sends(&a, &keep(9, ""), &[]);
    rig.sends(&a, &keep(10, ""), &[]);
    assert!(told(&a).is_none(), "there is no answer");
    drop(a);
    for _ in 0..2 {
        rig.poll();
        let (_, kept) = attach(&mut rig, "a", true);
        let brief: Vec<_> = kept.iter().map(|(key, note, fds)| (*key, note.as_str(), fds.len())).collect();
        assert_eq!(brief, [(1, "", 1), (7, "second", 16)]);
        assert!(same(&kept[1].2[15], &files[15].try_clone().unwrap().into()));
    }
}

#[test]
fn who_wants_too_much_kept_is_cut_off_and_what_was_kept_stays() {
    let one = memory(1);
    let keep = |key, note: &str| ToCore::Keep { key, note: note.into() };
    for how in 0..3 {
        let (mut rig, a, _b) = ready();
        rig.sends(&a, &keep(0, "first"), &[one.as_fd()]);
        match how {
            0 => (1..=MAX_KEPT as u32).for_each(|key| rig.sends(&a, &keep(key, ""), &[one.as_fd()])),
            1 => (1..=32).for_each(|key| rig.sends(&a, &keep(key, ""), &[one.as_fd(); 16])),
            _ => rig.sends(&a, &keep(0, &"x".repeat(1025)), &[one.as_fd()]),
        }
        assert!(is_cut_off(&a), "{how}");
        drop(a);
        rig.poll();
        let (_, kept) = attach(&mut rig, "a", true);
        assert_eq!(kept[0].1, "first");
    }
}

#[test]
fn a_slot_that_may_not_pass_anything_through_may_say_none_of_it() {
    let one = memory(1);
    for message in [
        ToCore::Keep { key: 0, note: String::new() },
        ToCore::MapRegion { gpa: GPA, bytes: PAGE, offset: 0 },
        ToCore::Trap { gpa: GPA, bytes: PAGE },
        ToCore::Untrap { gpa: GPA },
        ToCore::AccessDone { id: 1, value: 0 },
        ToCore::Interrupt { id: 0, vector: 32, vp: 0 },
        ToCore::InterruptDelete { id: 0 },
    ] {
        let (mut rig, _a, b) = ready();
        rig.sends(&b, &message, &[one.as_fd()]);
        assert!(is_cut_off(&b), "{message:?}");
        assert!(rig.shown().is_empty() && rig.routes().is_empty());
    }
}

#[test]
fn regions_lie_in_windows_and_in_nobodys_way() {
    let (mut rig, a, _b) = ready();
    let file = memory(64);
    assert!(rig.region(&a, GPA, 4, 8 * PAGE, &file));
    assert!(rig.region(&a, GPA, 2, 0, &file), "another one in its place");
    for (gpa, pages, offset) in [
        (GPA + PAGE, 1, 0),
        (GPA + 8 * PAGE, 1, 8),
        (GPA + 8 * PAGE, 1, !0xfff),
        (GPA - PAGE, 1, 0),
        (0, 1, 0),
    ] {
        assert!(!rig.region(&a, gpa, pages, offset, &file), "{gpa:#x} {pages} {offset}");
    }
    assert!(rig.trap(&a, GPA + 2 * PAGE, PAGE));
    assert!(!rig.region(&a, GPA + 2 * PAGE, 1, 0, &file), "a trap is there");
    assert!(!rig.trap(&a, GPA + PAGE, PAGE), "a region is there");
    for n in 1..MAX_REGIONS as u64 {
        assert!(rig.region(&a, GPA + 16 * n * PAGE, 1, 0, &file));
    }
    assert!(!rig.region(&a, GPA + (1 << 20), 1, 0, &file), "too many");
    rig.says(&a, &ToCore::UnmapMemory { gpa: GPA });
    assert!(rig.region(&a, GPA + (1 << 20), 1, 0, &file));
    rig.closes(1);
    assert!(rig.shown().is_empty());
}

#[test]
fn a_region_that_does_not_answer_is_taken_away_and_the_vm_goes_on() {
    let (mut rig, a, _b) = ready();
    let file = memory(4);
    let fault = |rig: &mut Rig, vp, gpa| rig.server.region_fault(&rig.mock, vp, gpa);
    assert!(!fault(&mut rig, 0, None), "there is none");
    for n in 0..3 {
        assert!(rig.region(&a, GPA + n * PAGE, 1, n * PAGE, &file));
    }
    // KVM says where.
    assert!(fault(&mut rig, 0, Some(GPA + PAGE + 8)));
    assert_eq!(said(&a), Some(ToVsp::RegionLost { gpa: GPA + PAGE }));
    assert_eq!(rig.shown(), [GPA, GPA + 2 * PAGE]);
    assert!(fault(&mut rig, 1, Some(GPA + PAGE)), "the other VP was on its way as well");
    // It does not: each may be concerned.
    assert!(fault(&mut rig, 1, None));
    assert!(rig.shown().is_empty());
    let lost = [said(&a), said(&a)];
    assert!(lost.iter().all(|one| matches!(one, Some(ToVsp::RegionLost { .. }))), "{lost:?}");
    assert!(fault(&mut rig, 0, None) && !fault(&mut rig, 0, None) && !fault(&mut rig, 1, None));
    // It may be mapped again.
    assert!(rig.region(&a, GPA, 1, 0, &file));
    drop(a);
    rig.poll();
    assert!(fault(&mut rig, 0, None), "nobody has to be there");
    assert!(succeed(&mut rig).1.is_empty());
}

#[test]
fn a_vp_waits_at_a_trap_until_the_device_answers() {
    let (mut rig, a, _b) = ready();
    assert_eq!(rig.read(0, GPA), NOTHING);
    assert!(rig.trap(&a, GPA, 2 * PAGE));
    assert!(rig.trap(&a, GPA, 2 * PAGE), "the very same again");
    assert_eq!(rig.read(0, GPA + 4), None);
    let Some(ToVsp::Access { id, gpa, bytes, write }) = said(&a) else { panic!("not asked") };
    assert_eq!((gpa, bytes, write), (GPA + 4, 4, None));
    assert_eq!(rig.server.access(&rig.mock, 1, GPA + PAGE, 2, Some(9)), None);
    let Some(ToVsp::Access { id: second, write, .. }) = said(&a) else { panic!("not asked") };
    assert_eq!(write, Some(9));
    rig.says(&a, &ToCore::AccessDone { id: second, value: 1 });
    rig.says(&a, &ToCore::AccessDone { id, value: 0x1234 });
    rig.says(&a, &ToCore::AccessDone { id, value: 5 });
    rig.says(&a, &ToCore::AccessDone { id: 77, value: 5 });
    assert_eq!(rig.answered(), [(1, 1), (0, 0x1234)], "once each");
    assert_eq!(rig.read(0, GPA + 2 * PAGE), NOTHING, "behind it is nothing");
    rig.says(&a, &ToCore::Untrap { gpa: GPA });
    assert_eq!(rig.read(0, GPA), NOTHING);
    assert!(!is_cut_off(&a));
}

#[test]
fn traps_are_few_whole_pages_and_in_nobodys_way() {
    let (mut rig, a, _b) = ready();
    for (gpa, bytes) in
        [(GPA, 0), (GPA + 4, PAGE), (GPA, 12), (0, PAGE), (GPA - PAGE, 2 * PAGE), (!0xfff, PAGE)]
    {
        assert!(!rig.trap(&a, gpa, bytes), "{gpa:#x} {bytes:#x}");
    }
    for n in 0..MAX_TRAPS as u64 {
        assert!(rig.trap(&a, GPA + 2 * n * PAGE, PAGE));
    }
    assert!(!rig.trap(&a, GPA + PAGE, PAGE), "too many");
    rig.says(&a, &ToCore::Untrap { gpa: GPA });
    assert!(!rig.trap(&a, GPA + PAGE, 2 * PAGE), "in the way of another");
    assert!(rig.trap(&a, GPA + PAGE, PAGE));
    rig.closes(1);
    assert_eq!(said(&a), Some(ToVsp::ChannelClose { channel: 1 }));
    assert!(!rig.trap(&a, GPA, PAGE), "it is closing");
    rig.says(&a, &ToCore::Closed { channel: 1 });
    assert!(!rig.trap(&a, GPA, PAGE), "it is closed");
}

#[test]
fn an_access_outlives_the_process() {
    let (mut rig, a, _b) = ready();
    assert!(rig.trap(&a, GPA, PAGE));
    assert_eq!(rig.read(0, GPA), None);
    let first = asked(&a);
    drop(a);
    rig.poll();
    assert_eq!(rig.read(1, GPA + 8), None, "nobody is there; it waits");
    let (next, before) = succeed(&mut rig);
    assert_eq!(before, [ToVsp::TrapThere { gpa: GPA, bytes: PAGE }]);
    assert_eq!(asked(&next), first, "the very same again");
    let second = asked(&next);
    rig.says(&next, &ToCore::AccessDone { id: first, value: 1 });
    rig.says(&next, &ToCore::AccessDone { id: second, value: 2 });
    assert_eq!(rig.answered(), [(0, 1), (1, 2)]);
}

#[test]
fn an_access_comes_after_the_channels() {
    let (mut rig, a, _b) = ready();
    assert!(rig.trap(&a, GPA, PAGE));
    drop(a);
    rig.poll();
    assert_eq!(rig.read(0, GPA), None);
    let (next, _) = attach(&mut rig, "a", true);
    let mut all = Vec::new();
    while let Some(message) = told_next(&next) {
        all.push(message);
    }
    let kinds = matches!(
        all.as_slice(),
        [ToVsp::TrapThere { .. }, ToVsp::ChannelOpen { .. }, ToVsp::Adopted {}, ToVsp::Access { .. }]
    );
    assert!(kinds, "{all:?}");
}

#[test]
fn a_hand_over_takes_accesses_with_it() {
    let (mut rig, a, _b) = ready();
    assert!(rig.trap(&a, GPA, PAGE));
    let new = rig.meet(&hello_now("a"));
    assert!(matches!(said(&new), Some(ToVsp::Welcome { standby: true, .. })));
    assert!(matches!(said(&new), Some(ToVsp::ChannelPrepare { .. })));
    let operator = rig.operator();
    assert_eq!(rig.read(0, GPA), None);
    let id = asked(&a);
    rig.asks(&operator, &Request::Swap { device: "a".into(), wait_ms: 0 });
    assert_eq!(said(&a), Some(ToVsp::Quiesce {}));
    assert_eq!(rig.read(1, GPA), None);
    assert_eq!(said(&a), None, "it is about to go");
    rig.says(&a, &ToCore::Quiesced {});
    rig.serve(&new, true);
    let mut ids = Vec::new();
    while let Some(message) = said(&new) {
        if let ToVsp::Access { id, .. } = message {
            ids.push(id);
        }
    }
    assert_eq!(ids, [id, id + 1]);
}

#[test]
fn who_closes_or_resets_does_not_wait() {
    for how in 0..3 {
        let (mut rig, a, _b) = ready();
        assert!(rig.trap(&a, GPA, PAGE));
        assert_eq!(rig.read(1, GPA), None);
        match how {
            0 => rig.closes(1),
            1 => rig.server.reset(&rig.mock),
            _ => rig.says(&a, &ToCore::Untrap { gpa: GPA }),
        }
        assert_eq!(rig.answered(), [(1, u64::MAX)], "{how}");
        let id = asked(&a);
        rig.says(&a, &ToCore::AccessDone { id, value: 1 });
        assert_eq!(rig.answered(), [], "too late, and no harm");
        assert!(!is_cut_off(&a));
    }
}

/// Devices that reach guest memory by themselves: "a", with channel 1 open.
fn acting() -> (Rig, Peer) {
    let slots = vec![DeviceSlot { passthrough: true, ..disk("a") }, slot("bb")];
    let mut rig = Rig::with(slots, vec![own_uid()]);
    let (a, _) = attach(&mut rig, "a", false);
    rig.contact();
    rig.post(GuestMessage::RequestOffers);
    rig.heard();
    rig.open(&a, 1, 1);
    (rig, a)
}

#[test]
fn what_acts_by_itself_is_told_to_stop_before_a_close_is_over() {
    let (mut rig, a) = acting();
    drop(a);
    rig.poll();
    rig.closes(1);
    assert_eq!(rig.server.live.len(), 1);
    let (next, _) = attach(&mut rig, "a", true);
    assert_eq!(said(&next), Some(ToVsp::ChannelClose { channel: 1 }), "that it serves is not enough");
    assert!(!rig.server.is_quiet());
    rig.says(&next, &ToCore::Closed { channel: 1 });
    assert!(rig.server.is_quiet() && !rig.is_shared(1));
    rig.open(&next, 1, 2);
}

#[test]
fn nor_is_a_close_over_by_a_hand_over() {
    let (mut rig, a) = acting();
    let new = rig.meet(&hello_now("a"));
    let operator = rig.operator();
    rig.asks(&operator, &Request::Swap { device: "a".into(), wait_ms: 0 });
    assert_eq!(said(&a), Some(ToVsp::Quiesce {}));
    rig.closes(1);
    rig.says(&a, &ToCore::Quiesced {});
    assert_eq!(rig.server.live.len(), 1);
    rig.says(&new, &ToCore::Serving {});
    let mut told = Vec::new();
    while let Some(message) = said(&new) {
        told.push(message);
    }
    assert_eq!(told.last(), Some(&ToVsp::ChannelClose { channel: 1 }));
    assert!(matches!(reply(&operator), Some(Reply::Swapped { .. })));
    rig.says(&new, &ToCore::Closed { channel: 1 });
    assert!(rig.server.live.is_empty());
}

#[test]
fn who_lets_a_vp_wait_is_cut_off_and_the_next_is_asked() {
    let (mut rig, a, _b) = ready();
    assert!(rig.trap(&a, GPA, PAGE));
    assert_eq!(rig.read(0, GPA), None);
    let id = asked(&a);
    let later = Instant::now() + Duration::from_secs(10);
    assert!(rig.server.deadline().is_some_and(|when| when <= later));
    rig.server.tick(&rig.mock, later);
    assert!(is_cut_off(&a));
    drop(a);
    rig.poll();
    let (next, _) = succeed(&mut rig);
    assert_eq!(asked(&next), id);
}

#[test]
fn nor_does_a_vp_wait_for_who_does_not_listen() {
    let (mut rig, a, _b) = ready();
    assert!(rig.trap(&a, GPA, PAGE));
    // Its socket has no room for a question.
    let (_, process) = rig.server.devices[0].slot.holder().unwrap();
    while process.peer.send(&ToVsp::Adopted {}, &[]).is_ok() {}
    let before = Instant::now();
    assert_eq!(rig.read(0, GPA), None);
    let after = Instant::now();
    assert!(rig.server.deadline().is_some_and(|when| when <= after + TELL_AGAIN), "it is tried again soon");
    let is_there = |rig: &Rig| rig.server.devices[0].slot.holder().is_some();
    for seconds in [1, 5, 9] {
        rig.server.tick(&rig.mock, before + Duration::from_secs(seconds));
        assert!(is_there(&rig), "{seconds}");
    }
    rig.server.tick(&rig.mock, after + Duration::from_secs(10));
    assert!(is_cut_off(&a), "however often it was tried");
    drop(a);
    rig.poll();
    let (next, _) = succeed(&mut rig);
    let id = asked(&next);
    rig.says(&next, &ToCore::AccessDone { id, value: 7 });
    assert_eq!(rig.answered(), [(0, 7)]);
}

#[test]
fn interrupts_are_routed_moved_and_deleted() {
    let (mut rig, a, _b) = ready();
    let bells: Vec<Doorbell> = (0..3).map(|_| Doorbell::new().unwrap()).collect();
    let at = |vp, vector| Target { vp, vector };
    assert!(rig.interrupt(&a, 5, 40, 0, &[bells[0].as_fd()]));
    assert!(rig.interrupt(&a, 6, 41, 1, &[bells[1].as_fd()]));
    assert_eq!(rig.routes(), [at(0, 40), at(1, 41)]);
    let a_id = device_id(rig.server.devices[0].instance.to_wire());
    assert_eq!(rig.retarget(a_id, 5, 50, 1), HvStatus::Success);
    assert_eq!(rig.retarget(a_id | 3, 6, 51, 0), HvStatus::Success);
    assert_eq!(rig.routes(), [at(1, 50), at(0, 51)]);
    let no = HvStatus::InvalidParameter;
    for (device, data, vector, vp) in
        [(a_id, 7, 50, 1), (a_id ^ 8, 5, 50, 1), (a_id, 5, 15, 1), (a_id, 5, 256, 1), (a_id, 5, 50, VPS)]
    {
        assert_eq!(rig.retarget(device, data, vector, vp), no, "{device:#x} {data} {vector} {vp}");
    }
    // The next in the place of one.
    assert!(rig.interrupt(&a, 5, 60, 0, &[bells[2].as_fd()]));
    assert_eq!(rig.routes(), [at(0, 60), at(0, 51)]);
    rig.says(&a, &ToCore::InterruptDelete { id: 6 });
    rig.says(&a, &ToCore::InterruptDelete { id: 6 });
    assert_eq!(rig.routes(), [at(0, 60)]);
    assert_eq!(rig.retarget(a_id, 6, 50, 1), no);
    // They outlive the process and end with the channel.
    drop(a);
    rig.poll();
    assert_eq!(rig.retarget(a_id, 5, 61, 1), HvStatus::Success);
    let (_next, _) = succeed(&mut rig);
    assert_eq!(rig.routes(), [at(1, 61)]);
    rig.closes(1);
    assert_eq!(rig.routes(), []);
}

#[test]
fn interrupts_that_cannot_be_are_refused() {
    let (mut rig, a, _b) = ready();
    let bell = Doorbell::new().unwrap();
    assert!(rig.interrupt(&a, 1, 32, 0, &[bell.as_fd()]));
    for (vector, vp, count) in [(15, 0, 1), (32, VPS, 1), (32, 0, 0), (32, 0, 2)] {
        assert!(!rig.interrupt(&a, 1, vector, vp, &[bell.as_fd(), bell.as_fd()][..count]));
        assert_eq!(rig.routes(), [], "the one before is no more");
    }
    for id in 0..MAX_INTERRUPTS as u32 {
        assert!(rig.interrupt(&a, id, 32, 0, &[bell.as_fd()]));
    }
    assert!(!rig.interrupt(&a, MAX_INTERRUPTS as u32, 32, 0, &[bell.as_fd()]));
    assert!(rig.interrupt(&a, 3, 33, 0, &[bell.as_fd()]), "one of them anew");
    assert!(!is_cut_off(&a));
}

#[test]
fn interrupts_that_come_and_go_all_the_time_are_refused() {
    let (mut rig, a, _b) = ready();
    let bell = Doorbell::new().unwrap();
    // A driver that takes all that it can have, and takes others instead.
    for round in 0..2 {
        for id in 0..MAX_INTERRUPTS as u32 {
            assert!(rig.interrupt(&a, id, 32, 0, &[bell.as_fd()]), "{round} {id}");
        }
    }
    let start = Instant::now();
    let mut made = 0;
    let refused = loop {
        match rig.interrupt(&a, 0, 32, 0, &[bell.as_fd()]) {
            true => made += 1,
            false => break true,
        }
        if made > 512 + start.elapsed().as_millis() {
            break false;
        }
    };
    assert!(refused, "it has no end");
    assert_eq!(rig.routes().len(), MAX_INTERRUPTS - 1, "the one before is no more");
    assert!(!is_cut_off(&a), "it may be the guest's doing");
}

#[test]
fn of_memory_a_region_is_small() {
    let (mut rig, a, _b) = ready();
    let (mib, big) = ((1 << 20) / PAGE, 64 << 20);
    let file = memory(big / PAGE);
    assert!(!rig.region(&a, GPA, 16 * mib + 1, 0, &file));
    assert!(rig.region(&a, GPA, 12 * mib, 0, &file));
    let next = GPA + (12 << 20);
    assert!(!rig.region(&a, next, 4 * mib + 1, 0, &file), "all of them together");
    assert!(rig.region(&a, next, 4 * mib, 0, &file));
    assert!(rig.region(&a, GPA, 11 * mib, 0, &file), "in the place of one");
    // A device is no regular file: there is room for it in the window.
    let device = std::fs::File::open("/dev/null").unwrap();
    let place = GPA + (16 << 20);
    rig.sends(&a, &ToCore::MapRegion { gpa: place, bytes: big, offset: 0 }, &[device.as_fd()]);
    assert_eq!(said(&a), Some(ToVsp::MemoryMapped { gpa: place, result: Ok(()) }));
}
