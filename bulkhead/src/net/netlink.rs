//! Questions and orders to the kernel's network (rtnetlink(7)): messages of attributes, composed and taken apart. Nothing here knows what they
//! are about.
//!
//! Blocking, one message after the other: whoever types a command waits for it anyway.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send, socket,
};

/// Flags of a message (`linux/netlink.h`).
pub const CREATE: u16 = 0x400;
/// It must not be there yet.
pub const EXCLUSIVE: u16 = 0x200;
/// What is there becomes what is said.
pub const REPLACE: u16 = 0x100;
const REQUEST: u16 = 1;
const ACKNOWLEDGE: u16 = 4;
const DUMP: u16 = 0x300;
/// Types of answers.
const ERROR: u16 = 2;
const DONE: u16 = 3;
/// Bytes of `struct nlmsghdr`, and of `struct nlattr`.
const HEADER: usize = 16;
const ATTRIBUTE: usize = 4;
/// Marks attributes that hold others; the kernel's, and nothing that matters here.
const NESTED: u16 = 0x8000;
const TYPE_MASK: u16 = 0x3fff;
/// Longest answer in one piece: the kernel makes them no longer than that (`NLMSG_GOODSIZE` is a page, dumps are up to 32 KiB).
const LONGEST: usize = 64 * 1024;

/// A message's payload: a fixed part and attributes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Payload(Vec<u8>);

impl Payload {
    /// One that begins with `fixed`.
    pub fn new(fixed: &[u8]) -> Self {
        Self(fixed.to_vec())
    }

    /// Adds an attribute.
    pub fn add(mut self, kind: u16, value: &[u8]) -> Self {
        let length = u16::try_from(ATTRIBUTE + value.len()).unwrap_or(u16::MAX);
        self.0.extend(length.to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    /// Adds a text with the zero at its end.
    pub fn text(self, kind: u16, value: &str) -> Self {
        self.add(kind, &[value.as_bytes(), &[0]].concat())
    }

    /// Adds a number.
    pub fn number(self, kind: u16, value: u32) -> Self {
        self.add(kind, &value.to_ne_bytes())
    }

    /// Adds an attribute that holds others.
    pub fn nest(self, kind: u16, inner: &Payload) -> Self {
        self.add(kind | NESTED, &inner.0)
    }

    /// As bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

/// The attributes in `bytes`: their types without flags, and their values. What does not fit ends them.
pub fn attributes(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let header: [u8; ATTRIBUTE] = rest.get(..ATTRIBUTE)?.try_into().ok()?;
        let length = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let value = rest.get(ATTRIBUTE..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((u16::from_ne_bytes([header[2], header[3]]) & TYPE_MASK, value))
    })
}

/// The value of the first attribute of that type.
pub fn attribute(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(found, _)| *found == kind).map(|(_, value)| value)
}

/// A number in an attribute.
pub fn number(value: &[u8]) -> Option<u32> {
    Some(u32::from_ne_bytes(value.get(..4)?.try_into().ok()?))
}

/// A text in an attribute.
pub fn text(value: &[u8]) -> String {
    String::from_utf8_lossy(value).trim_end_matches('\0').to_owned()
}

/// A connection to the kernel's network, that of the caller's network namespace.
#[derive(Debug)]
pub struct Netlink {
    socket: OwnedFd,
    sequence: u32,
}

impl Netlink {
    /// A new one.
    pub fn new() -> io::Result<Self> {
        let socket = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkRoute,
        )?;
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
        Ok(Self { socket, sequence: 0 })
    }

    /// Has something done.
    pub fn order(&mut self, kind: u16, flags: u16, payload: &Payload) -> Result<(), Errno> {
        self.send(kind, REQUEST | ACKNOWLEDGE | flags, payload)?;
        self.answers(|_, _| {})
    }

    /// Asks for everything of a sort: the types and payloads of the answers.
    pub fn dump(&mut self, kind: u16, payload: &Payload) -> Result<Vec<(u16, Vec<u8>)>, Errno> {
        self.send(kind, REQUEST | DUMP, payload)?;
        let mut found = Vec::new();
        self.answers(|kind, payload| found.push((kind, payload.to_vec())))?;
        Ok(found)
    }

    fn send(&mut self, kind: u16, flags: u16, payload: &Payload) -> Result<(), Errno> {
        self.sequence = self.sequence.wrapping_add(1);
        let length = u32::try_from(HEADER + payload.0.len()).map_err(|_| Errno::EMSGSIZE)?;
        let mut message = length.to_ne_bytes().to_vec();
        message.extend(kind.to_ne_bytes());
        message.extend(flags.to_ne_bytes());
        message.extend(self.sequence.to_ne_bytes());
        message.extend([0; 4]);
        message.extend(&payload.0);
        send(self.socket.as_raw_fd(), &message, MsgFlags::empty()).map(drop)
    }

    /// Everything that is answered until the end of it.
    fn answers(&mut self, mut each: impl FnMut(u16, &[u8])) -> Result<(), Errno> {
        let mut buffer = vec![0; LONGEST];
        loop {
            let length = match recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                Err(Errno::EINTR) => continue,
                length => length?,
            };
            let mut rest = buffer.get(..length).unwrap_or_default();
            while let Some(header) = rest.get(..HEADER) {
                let word = |at: usize| number(&header[at..]).unwrap_or(0);
                let end = usize::try_from(word(0)).unwrap_or(0);
                let kind = u16::from_ne_bytes([header[4], header[5]]);
                let Some(payload) = rest.get(HEADER..end) else { return Err(Errno::EBADMSG) };
                rest = rest.get(end.next_multiple_of(4)..).unwrap_or_default();
                // An answer to what was given up before.
                if word(8) != self.sequence {
                    continue;
                }
                match kind {
                    DONE => return Ok(()),
                    ERROR => {
                        let code = number(payload).map_or(0, |code| code.cast_signed());
                        return if code == 0 { Ok(()) } else { Err(Errno::from_raw(-code)) };
                    }
                    kind => each(kind, payload),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_read_as_they_are_written() {
        let inner = Payload::default().number(7, 9).text(8, "x");
        let payload = Payload::new(&[1, 2, 3, 4]).add(1, &[5]).nest(2, &inner);
        assert_eq!(payload.bytes().len() % 4, 0);
        let found: Vec<_> = attributes(&payload.bytes()[4..]).collect();
        assert_eq!(found[0], (1, &[5][..]));
        assert_eq!(found[1].0, 2, "without the flag");
        assert_eq!(attribute(found[1].1, 7).and_then(number), Some(9));
        assert_eq!(attribute(found[1].1, 8).map(text), Some("x".to_owned()));
    }

    #[test]
    fn what_does_not_fit_ends_the_list() {
        for bytes in [&[][..], &[1], &[255, 255, 1, 0], &[3, 0, 1, 0], &[0, 0, 0, 0]] {
            assert_eq!(attributes(bytes).count(), 0, "{bytes:?}");
        }
    }

    #[test]
    fn the_kernel_answers() {
        let mut netlink = Netlink::new().unwrap();
        // RTM_GETLINK, struct ifinfomsg: there is a loopback interface everywhere.
        let links = netlink.dump(18, &Payload::new(&[0; 16])).unwrap();
        // IFLA_IFNAME
        let names: Vec<_> =
            links.iter().filter_map(|(_, link)| attribute(link.get(16..)?, 3).map(text)).collect();
        assert!(names.contains(&"lo".to_owned()), "{names:?}");
        assert_eq!(netlink.order(9999, 0, &Payload::default()), Err(Errno::EOPNOTSUPP));
    }
}
