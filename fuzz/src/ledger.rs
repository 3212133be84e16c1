//! A channel taken up over any ledger and any rings.

use std::cell::RefCell;
use std::rc::Rc;

use ipc::ledger::{self, Attempts, Completing, Found, Ledger, LedgerMemory, Phase, Rings, Spine, Word};
use vmbus::packet::{PacketHeader, PacketType};
use vmbus::ring::testing::TestRing;
use vmbus::ring::{ControlWord, RingMemory};
use vsp::channel::{Channel, Rerun, Taken, Ticket};

use crate::Script;

const SLOTS: u32 = 3;
const RING: Rings = Rings { to_host: 4096, to_guest: 4096 };

/// A ledger in plain memory.
#[derive(Clone)]
struct Memory(Rc<RefCell<Vec<u8>>>);

impl LedgerMemory for Memory {
    fn len(&self) -> usize {
        self.0.borrow().len()
    }
    fn load(&self, offset: usize) -> u64 {
        let mut word = [0; 8];
        self.read(offset, &mut word);
        u64::from_le_bytes(word)
    }
    fn store(&self, offset: usize, value: u64) {
        self.write(offset, &value.to_le_bytes());
    }
    fn read(&self, offset: usize, into: &mut [u8]) {
        into.copy_from_slice(&self.0.borrow()[offset..offset + into.len()]);
    }
    fn write(&self, offset: usize, from: &[u8]) {
        self.0.borrow_mut()[offset..offset + from.len()].copy_from_slice(from);
    }
}

/// First a script of what becomes of the ledger and of the rings' words, some of it with good checksums, which no
/// fuzzer guesses; then what lies in both rings. The channel is taken up and served, twice.
pub fn ledger(data: &[u8]) {
    let mut script = Script::new(data);
    let Some(steps) = script.string() else { return };
    let memory = Memory(Rc::new(RefCell::new(vec![0; ledger::bytes(SLOTS) as usize])));
    let rings = [TestRing::new(1), TestRing::new(1)];
    let content = script.rest();
    let content = &content[..content.len().min(4096)];
    rings.iter().for_each(|ring| ring.write(0, content));
    damage(&memory, &rings, Script::new(steps));
    for _ in 0..2 {
        serve(&memory, &rings);
    }
}

/// Carries the script out: each step is a kind, a place and a value.
fn damage(memory: &Memory, rings: &[TestRing; 2], mut script: Script<'_>) {
    while let (Some(kind), Some(place), Some(value)) = (script.byte(), script.byte(), script.word()) {
        let number = u64::from(value);
        let slot = u32::from(place) % SLOTS;
        let open = || match Ledger::open(memory.clone(), RING) {
            Ok(Found::Used(ledger) | Found::Blank(ledger)) => Some(ledger),
            Err(_) => None,
        };
        match (kind % 10, open()) {
            (0, _) => {
                let word = [ControlWord::WriteIndex, ControlWord::ReadIndex, ControlWord::PendingSendSize]
                    [usize::from(place / 2) % 3];
                rings[usize::from(place) % 2].store(word, u32::from(value));
            }
            // Any word of the header, of a state, a spine, an outcome.
            (1, _) => {
                let places = [0, 4096, 8192, 12288, 16384 + 40960, 16384 + 45056 + 40960];
                let at = places[usize::from(place) % 6] + usize::from(place) / 6 * 8;
                memory.store(at, number << (place % 48));
            }
            (2, Some(ledger)) => ledger.format(u32::from(place) * 8, u32::from(value), || ()),
            (3, Some(ledger)) => {
                let words =
                    [Word::Epoch, Word::ReadBase, Word::WriteBase, Word::StateGeneration, Word::Suspect];
                ledger.set(words[usize::from(place) % 5], number.wrapping_mul(0x1_0000_0001));
            }
            (4, Some(ledger)) => {
                let words = [Word::Crash, Word::Doubtful, Word::Carried, Word::Suspect];
                let carried = Attempts::none(number).another(1).another(2).another(3);
                let value = if place.is_multiple_of(8) { carried.word() } else { number };
                ledger.set_plain(words[usize::from(place) % 4], value);
            }
            (5, Some(ledger)) => {
                let phases = [Phase::Free, Phase::Taken, Phase::Completing, Phase::Ended];
                ledger.set_state(slot, phases[usize::from(place / 4) % 4], number % 16);
            }
            (6, Some(ledger)) => {
                let packet = content_of(place, number);
                let header = PacketHeader {
                    packet_type: PacketType::IN_BAND,
                    flags: u16::from(place) & 1,
                    transaction_id: number,
                    data_offset: 16,
                    len: packet.len() as u32,
                };
                let spine = Spine::new(number % 16, &header, &packet, number * 8, 1);
                ledger.write_request(slot, &spine, &packet);
                ledger.set_state(slot, Phase::Taken, number % 16);
            }
            (7, Some(ledger)) => {
                let generation = u64::from(place) % 4;
                ledger.write_completing(slot, Completing { visible_at: number, generation });
            }
            (8, Some(ledger)) => {
                ledger.write_outcome(slot, number % 16, &content_of(place, number));
                ledger.set_outcome(slot, number % 16);
            }
            (9, Some(ledger)) => ledger.write_state(number % 4, &content_of(place, number)),
            _ => {}
        }
    }
}

/// A packet, or nearly one.
fn content_of(place: u8, number: u64) -> Vec<u8> {
    let len = 16 + usize::from(place) % 32 * 8;
    let mut packet = vec![place; len];
    let len8 = if number % 7 == 0 { number as u8 } else { (len / 8) as u8 };
    packet[..8].copy_from_slice(&[6, 0, 2, 0, len8, 0, 1, 0]);
    packet
}

/// Takes the channel up and ends all that there is, if it can be taken up.
fn serve(memory: &Memory, rings: &[TestRing; 2]) {
    let before = memory.0.borrow().clone();
    let adopted = Channel::adopt(rings[0].clone(), rings[1].clone(), memory.clone(), 2);
    let Ok((mut channel, recovery)) = adopted else {
        assert!(*memory.0.borrow() == before, "who refuses a ledger leaves it as it is");
        return;
    };
    assert!(recovery.again + recovery.rejected + recovery.done + recovery.void <= SLOTS);
    let mut scratch = Vec::new();
    let mut held: Vec<Ticket> = Vec::new();
    // A ring holds no more than 4096 / 24 packets; a guest that makes it go round has no more than one go at it.
    for _ in 0..600 {
        let ticket = match channel.next_rerun(&mut scratch) {
            Rerun::Packet(_, ticket) | Rerun::Reject(_, ticket, _) => Some(ticket),
            Rerun::Unreadable(ticket) | Rerun::Outcome(ticket) => Some(ticket),
            Rerun::Wait => None,
            Rerun::None => match channel.take(&mut scratch) {
                Taken::Packet(_, ticket) | Taken::Reject(_, ticket, _) => Some(ticket),
                Taken::Wait | Taken::Returned => None,
                Taken::Empty | Taken::Failed(_) => break,
            },
        };
        match ticket {
            Some(ticket) => {
                channel.enter(&ticket);
                channel.leave();
                held.push(ticket);
            }
            None => {
                let Some(ticket) = held.pop() else { break };
                let state = ticket.sequence.is_multiple_of(3).then_some(&b"state"[..]);
                if ticket.sequence % 5 == 1 {
                    channel.record_outcome(&ticket, b"outcome");
                }
                let completed = channel.complete(ticket, b"done", state);
                if completed.is_err() || channel.publish_completions().is_err() {
                    break;
                }
            }
        }
        assert!(channel.outstanding() <= 2, "no more than its limit");
    }
    channel.take_signal();
}
