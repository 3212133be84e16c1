//! The commands that there are, and REPORT SUPPORTED OPERATION CODES (SPC-4 6.35).
//!
//! A CDB is read by [`super::cdb`]; here it says of each which bits mean something. A test keeps the two together.

use super::sense::Sense;

/// A command that a unit knows.
#[derive(Clone, Copy, Debug)]
struct Supported {
    /// Bits of the CDB that mean something; the first byte is the operation code itself.
    usage: &'static [u8],
    /// Service action, of those commands that have them: they are told apart by it.
    action: Option<u16>,
    /// Only where blocks can be deallocated.
    unmapping: bool,
}

const fn plain(usage: &'static [u8]) -> Supported {
    Supported { usage, action: None, unmapping: false }
}

const fn action(action: u16, usage: &'static [u8]) -> Supported {
    Supported { usage, action: Some(action), unmapping: false }
}

/// Control byte: nothing of it is supported.
const CTL: u8 = 0;
const F: u8 = 0xFF;
/// Flags of a READ or WRITE: DPO and FUA.
const RW: u8 = 0x18;
/// Flags of a VERIFY or WRITE AND VERIFY: DPO and BYTCHK's lower bit.
const VF: u8 = 0x12;

/// All of them, by operation code and service action.
const SUPPORTED: &[Supported] = &[
    plain(&[0x00, 0, 0, 0, 0, CTL]),
    plain(&[0x03, 1, 0, 0, F, CTL]),
    plain(&[0x08, 0x1F, F, F, F, CTL]),
    plain(&[0x0A, 0x1F, F, F, F, CTL]),
    plain(&[0x12, 1, F, F, F, CTL]),
    plain(&[0x15, 0x10, 0, 0, F, CTL]),
    plain(&[0x1A, 8, F, F, F, CTL]),
    plain(&[0x1B, 1, 0, 0x0F, 0xF7, CTL]),
    plain(&[0x1D, 4, 0, 0, 0, CTL]),
    plain(&[0x25, 0, 0, 0, 0, 0, 0, 0, 0, CTL]),
    plain(&[0x28, RW, F, F, F, F, 0, F, F, CTL]),
    plain(&[0x2A, RW, F, F, F, F, 0, F, F, CTL]),
    plain(&[0x2E, VF, F, F, F, F, 0, F, F, CTL]),
    plain(&[0x2F, VF, F, F, F, F, 0, F, F, CTL]),
    plain(&[0x34, 2, F, F, F, F, 0, F, F, CTL]),
    plain(&[0x35, 2, F, F, F, F, 0, F, F, CTL]),
    plain(&[0x41, 8, F, F, F, F, 0, F, F, CTL]),
    Supported { usage: &[0x42, 0, 0, 0, 0, 0, 0, F, F, CTL], action: None, unmapping: true },
    plain(&[0x55, 0x10, 0, 0, 0, 0, 0, F, F, CTL]),
    plain(&[0x5A, 8, F, F, 0, 0, 0, F, F, CTL]),
    action(0, &[0x5E, 0x1F, 0, 0, 0, 0, 0, F, F, CTL]),
    action(1, &[0x5E, 0x1F, 0, 0, 0, 0, 0, F, F, CTL]),
    action(2, &[0x5E, 0x1F, 0, 0, 0, 0, 0, F, F, CTL]),
    action(3, &[0x5E, 0x1F, 0, 0, 0, 0, 0, F, F, CTL]),
    action(0, &[0x5F, 0x1F, F, 0, 0, F, F, F, F, CTL]),
    action(1, &[0x5F, 0x1F, F, 0, 0, F, F, F, F, CTL]),
    action(2, &[0x5F, 0x1F, F, 0, 0, F, F, F, F, CTL]),
    action(3, &[0x5F, 0x1F, F, 0, 0, F, F, F, F, CTL]),
    action(4, &[0x5F, 0x1F, F, 0, 0, F, F, F, F, CTL]),
    action(5, &[0x5F, 0x1F, F, 0, 0, F, F, F, F, CTL]),
    action(6, &[0x5F, 0x1F, F, 0, 0, F, F, F, F, CTL]),
    action(7, &[0x5F, 0x1F, F, 0, 0, F, F, F, F, CTL]),
    plain(&[0x88, RW, F, F, F, F, F, F, F, F, F, F, F, F, 0, CTL]),
    plain(&[0x89, RW, F, F, F, F, F, F, F, F, 0, 0, 0, F, 0, CTL]),
    plain(&[0x8A, RW, F, F, F, F, F, F, F, F, F, F, F, F, 0, CTL]),
    plain(&[0x8E, VF, F, F, F, F, F, F, F, F, F, F, F, F, 0, CTL]),
    plain(&[0x8F, VF, F, F, F, F, F, F, F, F, F, F, F, F, 0, CTL]),
    plain(&[0x90, 2, F, F, F, F, F, F, F, F, F, F, F, F, 0, CTL]),
    plain(&[0x91, 2, F, F, F, F, F, F, F, F, F, F, F, F, 0, CTL]),
    plain(&[0x93, 9, F, F, F, F, F, F, F, F, F, F, F, F, 0, CTL]),
    action(0x10, &[0x9E, 0x1F, 0, 0, 0, 0, 0, 0, 0, 0, F, F, F, F, 0, CTL]),
    plain(&[0xA0, 0, F, 0, 0, 0, F, F, F, F, 0, CTL]),
    action(0x0C, &[0xA3, 0x1F, 0x87, F, F, F, F, F, F, F, 0, CTL]),
    plain(&[0xA8, RW, F, F, F, F, F, F, F, F, 0, CTL]),
    plain(&[0xAA, RW, F, F, F, F, F, F, F, F, 0, CTL]),
    plain(&[0xAE, VF, F, F, F, F, F, F, F, F, 0, CTL]),
    plain(&[0xAF, VF, F, F, F, F, F, F, F, F, 0, CTL]),
];

/// What is asked about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject {
    /// Every command.
    All,
    /// One command that has no service actions.
    Command(u8),
    /// One command with this service action.
    Action(u8, u16),
    /// One command, with this service action if it has any.
    Either(u8, u16),
}

impl Subject {
    /// Reads the CDB's fields. `Err` is what the guest is told.
    pub fn parse(options: u8, opcode: u8, action: u16) -> Result<Subject, Sense> {
        match options {
            0 => Ok(Subject::All),
            1 => Ok(Subject::Command(opcode)),
            2 => Ok(Subject::Action(opcode, action)),
            3 => Ok(Subject::Either(opcode, action)),
            _ => Err(Sense::in_cdb(2)),
        }
    }
}

/// The answer. `can_unmap`: of the unit. `timeouts` are asked for: we know none, and say so.
pub fn report(subject: Subject, timeouts: bool, can_unmap: bool) -> Result<Vec<u8>, Sense> {
    let known = || SUPPORTED.iter().filter(move |one| can_unmap || !one.unmapping);
    let of = |opcode| known().filter(move |one| one.usage[0] == opcode);
    let (opcode, action) = match subject {
        Subject::All => return Ok(all(known(), timeouts)),
        Subject::Command(opcode) => {
            if of(opcode).any(|one| one.action.is_some()) {
                return Err(Sense::in_cdb(2));
            }
            (opcode, None)
        }
        Subject::Action(opcode, action) => {
            if of(opcode).any(|one| one.action.is_none()) {
                return Err(Sense::in_cdb(2));
            }
            (opcode, Some(action))
        }
        Subject::Either(opcode, action) => (opcode, of(opcode).find_map(|one| one.action.map(|_| action))),
    };
    Ok(one(of(opcode).find(|one| one.action == action), timeouts))
}

fn all<'a>(known: impl Iterator<Item = &'a Supported>, timeouts: bool) -> Vec<u8> {
    const SERVACTV: u8 = 1;
    const CTDP: u8 = 2;
    let mut data = vec![0; 4];
    for command in known {
        let [high, low] = command.action.unwrap_or(0).to_be_bytes();
        let flags = if command.action.is_some() { SERVACTV } else { 0 } | if timeouts { CTDP } else { 0 };
        data.extend([command.usage[0], 0, high, low, 0, flags, 0, command.usage.len() as u8]);
        if timeouts {
            data.extend(TIMEOUTS);
        }
    }
    let len = (data.len() - 4) as u32;
    data[..4].copy_from_slice(&len.to_be_bytes());
    data
}

fn one(command: Option<&Supported>, timeouts: bool) -> Vec<u8> {
    const CTDP: u8 = 0x80;
    /// Not supported.
    const UNKNOWN: u8 = 1;
    /// Supported as the standard says.
    const KNOWN: u8 = 3;
    let Some(command) = command else { return vec![0, UNKNOWN, 0, 0] };
    let mut data = vec![0, KNOWN | if timeouts { CTDP } else { 0 }, 0, command.usage.len() as u8];
    data.extend(command.usage);
    if let Some(action) = command.action {
        // The usage map has the service action itself where its bits are.
        data[5] = action as u8;
    }
    if timeouts {
        data.extend(TIMEOUTS);
    }
    data
}

/// A timeouts descriptor that says nothing: no command has a limit.
const TIMEOUTS: [u8; 12] = [0, 0x0A, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scsi::Command;

    /// A command of this kind that asks for nothing special.
    fn simple(opcode: u8, action: u8, len: usize) -> Vec<u8> {
        let mut cdb = vec![0; len];
        (cdb[0], cdb[1]) = (opcode, action);
        match opcode {
            0x15 | 0x55 => cdb[1] |= 0x10,
            0x5F => cdb[2] = 1,
            _ => {}
        }
        cdb
    }

    #[test]
    fn what_is_listed_is_what_is_understood() {
        for opcode in 0..=0xFF {
            for action in 0..32u8 {
                let listed = SUPPORTED.iter().filter(|one| one.usage[0] == opcode);
                let mut listed =
                    listed.filter(|one| one.action.is_none_or(|number| number == u16::from(action)));
                if !matches!(opcode, 0x5E | 0x5F | 0x9E | 0xA3) && action != 0 {
                    continue;
                }
                let understood = Command::parse(&simple(opcode, action, 16)).is_ok();
                assert_eq!(listed.next().is_some(), understood, "{opcode:#x} {action:#x}");
            }
        }
    }

    #[test]
    fn what_is_not_in_a_map_is_not_looked_at_or_refused() {
        for command in SUPPORTED {
            let cdb = simple(command.usage[0], command.action.unwrap_or(0) as u8, command.usage.len());
            let Ok(plain) = Command::parse(&cdb) else { panic!("{cdb:x?}") };
            for byte in 1..cdb.len() {
                for bit in (0..8).map(|bit| 1 << bit).filter(|bit| command.usage[byte] & bit == 0) {
                    let mut changed = cdb.clone();
                    changed[byte] ^= bit;
                    match Command::parse(&changed) {
                        Ok(other) => assert_eq!(other, plain, "{changed:x?}"),
                        Err(sense) => assert_eq!(sense.key, 5),
                    }
                }
            }
        }
    }

    #[test]
    fn the_whole_list_is_as_long_as_it_says() {
        for timeouts in [false, true] {
            let data = report(Subject::All, timeouts, true).unwrap();
            let len = u32::from_be_bytes([data[0], data[1], data[2], data[3]]) as usize;
            assert_eq!(len, data.len() - 4);
            assert_eq!(len, SUPPORTED.len() * if timeouts { 20 } else { 8 });
        }
        let without = report(Subject::All, false, false).unwrap();
        assert_eq!(without.len(), 4 + 8 * (SUPPORTED.len() - 1));
    }

    #[test]
    fn one_command_is_asked_for_in_its_own_way() {
        let read = report(Subject::Command(0x28), true, true).unwrap();
        assert_eq!((read.len(), read[1], read[3], read[4], read[5] & 0x18), (26, 0x83, 10, 0x28, 0x18));
        assert_eq!(report(Subject::Action(0x28, 0), false, true), Err(Sense::in_cdb(2)));
        assert_eq!(report(Subject::Command(0x9E), false, true), Err(Sense::in_cdb(2)));
        let capacity = report(Subject::Action(0x9E, 0x10), false, true).unwrap();
        assert_eq!((capacity[1], capacity[4], capacity[5]), (3, 0x9E, 0x10));
        assert_eq!(report(Subject::Either(0x9E, 0x10), false, true).unwrap(), capacity);
        assert_eq!(report(Subject::Either(0x28, 7), true, true).unwrap(), read);
        for unknown in [Subject::Command(0xFF), Subject::Action(0x9E, 0x12), Subject::Either(0x9E, 0x12)] {
            assert_eq!(report(unknown, true, true).unwrap(), [0, 1, 0, 0]);
        }
        assert_eq!(report(Subject::Command(0x42), false, false).unwrap()[1], 1);
        assert_eq!(Subject::parse(4, 0, 0), Err(Sense::in_cdb(2)));
    }
}
