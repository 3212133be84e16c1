use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
        mpsc,
    },
    time::{Duration, Instant},
};

use super::*;
use crate::testing::{Mock, message_page, registers, slot, take_slot};

struct Rig {
    ram: Ram,
    mock: Mock,
    donations: Donations,
    synic: Synic,
}

impl Rig {
    /// Two VPs with their SynIC switched off.
    fn off() -> Self {
        Self {
            ram: Ram::new(4 << 20, false).unwrap(),
            mock: Mock::new(2),
            donations: Donations::default(),
            synic: Synic::new(2).unwrap(),
        }
    }

    fn on() -> Self {
        let mut rig = Self::off();
        (0..2).for_each(|vp| rig.set(vp, registers(vp)));
        rig
    }

    fn set(&mut self, vp: u32, registers: SynicRegisters) {
        self.synic.set_registers(&self.mock, &self.ram, &mut self.donations, vp, registers);
    }

    fn post(&mut self, text: &[u8]) {
        self.synic.post(&self.mock, &self.ram, 0, text);
    }

    fn take(&self) -> Option<(Vec<u8>, bool)> {
        take_slot(&self.ram, 0)
    }

    fn end_of_message(&mut self) {
        self.synic.deliver(&self.mock, &self.ram, 0);
    }

    fn flags_page(&self, vp: u32) -> Vec<u8> {
        let mut page = vec![0; PAGE as usize];
        nix::sys::uio::pread(self.synic.event_flags(vp).as_fd(), &mut page, 0).unwrap();
        page
    }
}

#[test]
fn messages_go_one_by_one_through_the_slot() {
    let mut rig = Rig::on();
    rig.post(b"one");
    assert!(!rig.mock.watched.borrow()[0], "nothing waits");
    rig.post(b"two");
    rig.post(b"three");
    assert_eq!(rig.mock.interrupts.borrow()[0], 1, "the slot is taken");
    assert!(rig.mock.watched.borrow()[0]);
    assert_eq!(rig.take(), Some((b"one".to_vec(), true)), "the guest sees that more waits");
    assert_eq!(rig.take(), None);
    rig.end_of_message();
    assert_eq!(rig.take(), Some((b"two".to_vec(), true)));
    rig.end_of_message();
    assert!(!rig.mock.watched.borrow()[0], "nothing waits any more");
    assert_eq!(rig.take(), Some((b"three".to_vec(), false)), "the last one");
    assert_eq!(rig.mock.interrupts.borrow()[0], 3);
    rig.end_of_message();
    assert_eq!((rig.take(), rig.mock.interrupts.borrow()[0]), (None, 3));
    assert_eq!(rig.mock.interrupts.borrow()[1], 0);
}

#[test]
fn no_message_is_lost_to_a_guest_that_is_quick() {
    // The guest's thread empties the slot as soon as it is full, and ends a message only if it is asked to. Of three
    // messages one is in the slot when it begins; the others come by what it says.
    const ROUNDS: u32 = 5_000;
    let mut rig = Rig::on();
    let ram = rig.ram.clone();
    let (end, ended) = mpsc::channel();
    let seen = Arc::new(AtomicU32::new(0));
    let posted = Arc::new(AtomicU32::new(0));
    let (guest, there) = (Arc::clone(&seen), Arc::clone(&posted));
    let guest = std::thread::spawn(move || {
        while guest.load(Ordering::SeqCst) < 3 * ROUNDS {
            let number = guest.load(Ordering::SeqCst);
            if there.load(Ordering::SeqCst) <= number || ram.load_u32(slot(0)).unwrap() == 0 {
                continue;
            }
            let mut flags = [0];
            ram.read(slot(0) + MESSAGE_FLAGS_OFFSET as u64, &mut flags).unwrap();
            let (bytes, pending) = take_slot(&ram, 0).unwrap();
            assert_eq!(bytes, number.to_le_bytes(), "each once and in order");
            assert!(flags[0] & MESSAGE_FLAG_PENDING != 0 || number % 3 == 2, "{number}: the flag comes late");
            guest.fetch_add(1, Ordering::SeqCst);
            if pending {
                end.send(()).unwrap();
            }
        }
    });
    for round in 0..ROUNDS {
        let numbers = 3 * round..3 * round + 3;
        numbers.clone().for_each(|n| rig.post(&n.to_le_bytes()));
        posted.store(numbers.end, Ordering::SeqCst);
        let limit = Instant::now() + Duration::from_secs(5);
        while seen.load(Ordering::SeqCst) < numbers.end {
            if ended.try_recv().is_ok() {
                rig.end_of_message();
            }
            assert!(Instant::now() < limit, "in round {round} a message waits and nobody will say so");
        }
    }
    guest.join().unwrap();
    assert!(rig.synic.vps[0].queue.is_empty());
}

#[test]
fn messages_wait_for_the_synic() {
    let mut rig = Rig::off();
    rig.post(b"early");
    assert_eq!(rig.mock.interrupts.borrow()[0], 0);
    assert!(!rig.mock.watched.borrow()[0], "there is no slot to watch");
    rig.set(0, SynicRegisters { control: 0, ..registers(0) });
    rig.set(0, SynicRegisters { message_page: message_page(0), ..registers(0) });
    assert_eq!(rig.take(), None, "not quite on");
    rig.set(0, registers(0));
    assert_eq!(rig.take(), Some((b"early".to_vec(), false)));
}

#[test]
fn switched_off_with_messages_waiting() {
    let mut rig = Rig::on();
    rig.post(b"one");
    rig.post(b"two");
    rig.set(0, SynicRegisters::default());
    assert!(!rig.mock.watched.borrow()[0]);
    rig.synic.discard();
    rig.set(0, registers(0));
    assert_eq!(rig.take(), Some((b"one".to_vec(), true)), "what is in the slot is the guest's");
    rig.end_of_message();
    assert_eq!(rig.take(), None);
}

#[test]
fn a_message_page_that_is_no_ram_loses_messages_and_nothing_else() {
    let mut rig = Rig::on();
    for page in [4 << 20, 0xc000_0000, 1 << 52, !0xfff] {
        rig.set(0, SynicRegisters { message_page: page | 1, ..registers(0) });
        (0..3).for_each(|_| rig.post(b"lost"));
        assert!(rig.synic.vps[0].queue.is_empty());
        assert!(!rig.mock.watched.borrow()[0]);
    }
    rig.set(0, registers(0));
    rig.post(b"found");
    assert_eq!(rig.take(), Some((b"found".to_vec(), false)));
}

#[test]
fn congestion_is_told() {
    let mut rig = Rig::on();
    (0..QUEUE_MAX).for_each(|_| rig.post(b"x"));
    assert!(!rig.synic.is_congested(), "one is in the slot");
    rig.post(b"x");
    assert!(rig.synic.is_congested());
    rig.take();
    rig.end_of_message();
    assert!(!rig.synic.is_congested());
}

#[test]
fn event_flags_lie_where_the_guest_wants_them() {
    let mut rig = Rig::off();
    let gpa = message_page(0) + PAGE;
    rig.ram.write(gpa, b"guest's own").unwrap();
    rig.set(0, registers(0));
    assert_eq!(&rig.flags_page(0)[..11], b"guest's own");
    nix::sys::uio::pwrite(rig.synic.event_flags(0).as_fd(), b"device's", 600).unwrap();
    let mut seen = [0; 8];
    rig.ram.read(gpa + 600, &mut seen).unwrap();
    assert_eq!(&seen, b"device's");
    // Moved: the memfd stays the same, for devices have it.
    let moved = SynicRegisters { event_page: 0x20_0001, ..registers(0) };
    rig.set(0, moved);
    rig.ram.read(gpa + 600, &mut seen).unwrap();
    assert_eq!(&seen, b"device's", "contents stay behind");
    rig.ram.write(0x20_0000, b"new").unwrap();
    assert_eq!(&rig.flags_page(0)[..3], b"new");
    rig.ram.write(gpa, b"old page").unwrap();
    assert_eq!(&rig.flags_page(0)[..3], b"new");
    rig.set(0, SynicRegisters::default());
    nix::sys::uio::pwrite(rig.synic.event_flags(0).as_fd(), b"late", 0).unwrap();
    let mut seen = [0; 3];
    rig.ram.read(0x20_0000, &mut seen).unwrap();
    assert_eq!(&seen, b"new", "a device cannot reach the guest any more");
}

#[test]
fn bad_event_flag_pages_are_refused_and_mended() {
    let mut rig = Rig::on();
    let bad = [message_page(1) + PAGE, 4 << 20, 0xc000_0000, !0xfff];
    for page in bad {
        rig.set(0, SynicRegisters { event_page: page | 1, ..registers(0) });
        assert!(matches!(rig.synic.vps[0].flags, EventPage::Idle(_)), "{page:#x}");
    }
    nix::sys::uio::pwrite(rig.synic.event_flags(1).as_fd(), b"still VP 1's", 0).unwrap();
    let mut seen = [0; 12];
    rig.ram.read(message_page(1) + PAGE, &mut seen).unwrap();
    assert_eq!(&seen, b"still VP 1's");
    rig.set(0, registers(0));
    assert!(matches!(rig.synic.vps[0].flags, EventPage::Laid(..)));
    // Reserved bits of the register are none of the address.
    rig.set(0, SynicRegisters { event_page: registers(0).event_page | 0xffe, ..registers(0) });
    assert!(matches!(rig.synic.vps[0].flags, EventPage::Laid(..)));
    assert_eq!(rig.synic.own_descriptors().count(), 2);
}

#[test]
fn message_and_event_page_may_be_one() {
    let mut rig = Rig::on();
    let page = message_page(0) | 1;
    rig.set(0, SynicRegisters { event_page: page, ..registers(0) });
    rig.post(b"through both");
    assert_eq!(rig.take(), Some((b"through both".to_vec(), false)));
    assert_eq!(&rig.flags_page(0)[512 + 16..][..12], b"through both");
}

#[test]
fn a_reset_forgets_messages_and_pages() {
    let mut rig = Rig::on();
    rig.post(b"one");
    rig.post(b"two");
    rig.synic.reset(&rig.mock, &rig.ram, &mut rig.donations);
    assert_eq!(*rig.mock.watched.borrow(), [false, false]);
    rig.ram.store_u32(slot(0), 0).unwrap();
    (0..2).for_each(|vp| rig.set(vp, registers(vp)));
    assert_eq!(rig.take(), None);
}
