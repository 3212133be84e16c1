//! How much goes through a port.
//!
//! * **At most** (`max`): to the guest by an HTB class at the port; from it by one at an IFB to which all that comes from the port is
//!   redirected, so that packets wait instead of being dropped, as a TCP of the guest's wants it.
//! * **At least** (`min`): where the bridge's uplink is full, which has to have a capacity ([`Network::capacity`]): an HTB class of
//!   the port's own there, known by the priority that its packets get where they come in.
//!
//! Structures and numbers are those of `linux/pkt_sched.h`, `linux/pkt_cls.h` and `linux/tc_act/`. What is there and right is left alone.

use nix::errno::Errno;

use super::htb::{class as htb, near, read as read_htb};
use super::netlink::{CREATE, Payload, REPLACE, attribute, number, text};
use super::rate::Rate;
use super::switch::{Error, Link, Network};

/// Messages (`linux/rtnetlink.h`).
const RTM_NEWQDISC: u16 = 36;
const RTM_DELQDISC: u16 = 37;
pub(super) const RTM_GETQDISC: u16 = 38;
const RTM_NEWTCLASS: u16 = 40;
const RTM_DELTCLASS: u16 = 41;
const RTM_GETTCLASS: u16 = 42;
const RTM_NEWTFILTER: u16 = 44;
pub(super) const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const TCA_HTB_INIT: u16 = 2;
const TCA_U32_SEL: u16 = 5;
const TCA_U32_ACT: u16 = 7;
/// `TC_H_ROOT`, `TC_H_INGRESS`, and the handle of that.
pub(super) const ROOT: u32 = 0xffff_ffff;
pub(super) const INGRESS: u32 = 0xffff_fff1;
pub(super) const INGRESS_HANDLE: u32 = 0xffff_0000;
/// The scheduler 1:, its only class at a port, and at an uplink the class of all, that of those without one of their own, and the first
/// of a port.
pub(super) const HANDLE: u32 = 0x1_0000;
const ONLY: u32 = HANDLE | 1;
const OTHERS: u32 = HANDLE | 2;
const FIRST_PORT: u32 = 0x100;
/// `TC_ACT_STOLEN`, `TC_ACT_PIPE`, `TC_ACT_OK`.
const STOLEN: u32 = 4;
const PIPE: u32 = 3;
const OK: u32 = 0;
/// Bytes of `struct tcmsg`.
const HEADER: usize = 20;
/// Bytes that may come at once: two of the largest packets that a guest hands over in one piece,
const LEAST_BURST: u64 = 128 * 1024;
/// or what goes through in this part of a second.
const BURST_PART: u64 = 100;
/// Bytes that wait at most: what goes through in a tenth of a second, within these bounds.
const WAITING: std::ops::RangeInclusive<u64> = 256 * 1024..=16 * 1024 * 1024;

/// What a port is limited to, in each direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limit {
    /// At least that much of the uplink.
    pub min: Option<Rate>,
    /// At most.
    pub max: Option<Rate>,
    /// Bytes that may come at once.
    pub burst: Option<u64>,
}

impl Limit {
    fn burst_at(&self, rate: Rate) -> u64 {
        self.burst.unwrap_or_else(|| LEAST_BURST.max(rate.0 / BURST_PART))
    }
}

/// `struct tcmsg`.
pub(super) fn header(index: u32, handle: u32, parent: u32, info: u32) -> Payload {
    let mut bytes = vec![0; 4];
    for word in [index, handle, parent, info] {
        bytes.extend(word.to_ne_bytes());
    }
    Payload::new(&bytes)
}

/// The parent, the handle and the rest of such a message, if it is about that interface.
pub(super) fn of_link(index: u32, payload: &[u8]) -> Option<(u32, u32, &[u8])> {
    let word = |at: usize| number(payload.get(at..)?);
    (word(4)? == index).then_some((word(12)?, word(8)?, payload.get(HEADER..)?))
}

/// `struct tc_gen` at the beginning of every action: what to do next.
fn action(verdict: u32) -> Vec<u8> {
    [0, 0, verdict, 0, 0].map(u32::to_ne_bytes).concat()
}

/// What happens to everything that comes from a port: it gets a priority, and goes to an interface.
fn actions(priority: Option<u32>, to: Option<u32>) -> Payload {
    let one = |kind: &str, options: &Payload| Payload::default().text(1, kind).nest(2, options);
    let mut all = Vec::new();
    if let Some(priority) = priority {
        let then = if to.is_some() { PIPE } else { OK };
        // TCA_SKBEDIT_PARMS, TCA_SKBEDIT_PRIORITY
        all.push(one("skbedit", &Payload::default().add(2, &action(then)).number(3, priority)));
    }
    if let Some(to) = to {
        // TCA_MIRRED_PARMS: struct tc_mirred; TCA_EGRESS_REDIR is 1.
        let parameters = [action(STOLEN), 1_u32.to_ne_bytes().to_vec(), to.to_ne_bytes().to_vec()].concat();
        all.push(one("mirred", &Payload::default().add(2, &parameters)));
    }
    (1..).zip(&all).fold(Payload::default(), |list, (place, action)| list.nest(place, action))
}

/// The IFB of a port: its name does not depend on the port's, which may be as long as a name can be.
fn ifb(port: &Link) -> String {
    format!("bh-in-{}", port.index)
}

impl Network {
    /// Limits a port. What was changed, as sentences.
    pub fn limit(&mut self, name: &str, limit: Limit) -> Result<Vec<String>, Error> {
        let Some(port) = self.find(name)? else {
            return Err(Error::Other(format!("there is no port {name}: see bulkhead net ls")));
        };
        if let (Some(min), Some(max)) = (limit.min, limit.max)
            && min > max
        {
            return Err(Error::Other(format!("at least {min} is more than at most {max}")));
        }
        if port.tap.is_none() {
            return Err(Error::Other(format!("{name} is no TAP, and not limited here")));
        }
        self.is_ours(&port)?;
        let before = self.read_limit(&port)?;
        let done = self.set_limit(&port, limit);
        if done.is_err() && before == Limit::default() {
            // Half a limit would be shown as one. Why there is none is what has to be said, not what else may fail.
            _ = self.unlimit(&port);
        }
        done?;
        let wanted = Limit { burst: limit.burst.or(limit.max.map(|max| limit.burst_at(max))), ..limit };
        let same = (before.min, before.max) == (wanted.min, wanted.max) && near(before.burst, wanted.burst);
        Ok(if same { Vec::new() } else { vec![format!("{name} gets {}", wanted.shown())] })
    }

    fn set_limit(&mut self, port: &Link, limit: Limit) -> Result<(), Error> {
        let class = self.reserve(port, limit)?;
        let Some(max) = limit.max else {
            self.clear(port)?;
            return if class.is_some() { self.divert(port, class, None) } else { Ok(()) };
        };
        let burst = limit.burst_at(max);
        self.shape(port, max, burst)?;
        let in_between = match self.find(&ifb(port))? {
            Some(found) => found,
            None => self.make(&ifb(port), "ifb", &Payload::default())?,
        };
        self.switch_on(&in_between)?;
        self.shape(&in_between, max, burst)?;
        self.divert(port, class, Some(in_between.index))
    }

    /// Takes the limits of a port away.
    pub(super) fn unlimit(&mut self, port: &Link) -> Result<(), Error> {
        self.take_back_promise(port)?;
        self.clear(port)
    }

    /// Takes back what is promised to a port of the uplink of the bridge that it is in. `false`: nothing was.
    pub(super) fn take_back_promise(&mut self, port: &Link) -> Result<bool, Error> {
        match self.uplink(port)? {
            Some((uplink, classes)) if classes.iter().any(|(handle, ..)| *handle == class_of(port)) => {
                self.drop_class(&uplink, class_of(port))?;
                Ok(true)
            }
            _ => Ok(false),
        }
    }

    /// Both schedulers, and the IFB.
    fn clear(&mut self, port: &Link) -> Result<(), Error> {
        for (kind, parent) in [("htb", ROOT), ("ingress", INGRESS)] {
            if self.has_qdisc(port, kind)? {
                let done = self.netlink.order(RTM_DELQDISC, 0, &header(port.index, 0, parent, 0));
                done.map_err(|error| Error::of(format!("take the limit of {} away", port.name), "", error))?;
            }
        }
        match self.find(&ifb(port))? {
            Some(found) if found.kind == "ifb" => self.remove(&found),
            _ => Ok(()),
        }
    }

    /// What a port is limited to.
    pub(super) fn read_limit(&mut self, port: &Link) -> Result<Limit, Error> {
        let own = self.classes(port)?.into_iter().find(|(handle, ..)| *handle == ONLY);
        let min = match self.uplink(port)? {
            Some((_, classes)) => classes.into_iter().find(|(handle, ..)| *handle == class_of(port)),
            None => None,
        };
        Ok(Limit {
            min: min.map(|(_, rate, ..)| rate),
            max: own.map(|(_, _, ceiling, _)| ceiling),
            burst: own.map(|(.., burst)| burst),
        })
    }

    /// An uplink of that capacity: what of it is promised to ports can be kept. What was changed, as sentences.
    pub fn capacity(&mut self, name: &str, capacity: Rate) -> Result<Vec<String>, Error> {
        let Some(uplink) = self.find(name)? else {
            return Err(Error::Other(format!("there is no interface {name}: see ip link")));
        };
        self.is_ours(&uplink)?;
        let classes = self.classes(&uplink)?;
        let is_so = classes.iter().any(|(handle, rate, ..)| (*handle, *rate) == (ONLY, capacity));
        let burst = Limit::default().burst_at(capacity);
        self.qdisc(&uplink, OTHERS)?;
        self.class(&uplink, HANDLE, ONLY, (capacity, capacity), burst)?;
        // Whoever is promised nothing gets what is left.
        self.class(&uplink, ONLY, OTHERS, (Rate((capacity.0 / 100).max(1000)), capacity), burst)?;
        Ok(if is_so { Vec::new() } else { vec![format!("{name} carries {capacity}")] })
    }

    /// A class of the port's own at the uplink, if something is promised to it: its handle.
    fn reserve(&mut self, port: &Link, limit: Limit) -> Result<Option<u32>, Error> {
        let uplink = self.uplink(port)?;
        let Some(min) = limit.min else {
            if let Some((uplink, _)) = uplink {
                self.drop_class(&uplink, class_of(port))?;
            }
            return Ok(None);
        };
        let Some((uplink, classes)) = uplink else {
            return Err(Error::Other(format!(
                "nothing can be promised to {}: its bridge has no uplink of a known capacity (bulkhead net bridge add BRIDGE \
                 --uplink eth0 --capacity 1Gbit)",
                port.name
            )));
        };
        let of = |wanted: u32| classes.iter().find(|(handle, ..)| *handle == wanted);
        let capacity = of(ONLY).map_or(Rate(0), |(_, rate, ..)| *rate);
        let promised: u64 = classes
            .iter()
            .filter(|(handle, ..)| *handle >= HANDLE | FIRST_PORT && *handle != class_of(port))
            .map(|(_, rate, ..)| rate.0)
            .sum();
        if promised + min.0 > capacity.0 {
            return Err(Error::Other(format!(
                "{min} cannot be promised: {} carries {capacity}, of which {} are promised to others",
                uplink.name,
                Rate(promised)
            )));
        }
        let ceiling = limit.max.unwrap_or(capacity).min(capacity);
        self.class(&uplink, ONLY, class_of(port), (min, ceiling), limit.burst_at(ceiling))?;
        Ok(Some(class_of(port)))
    }

    /// The uplink of a port's bridge that has a capacity, with its classes.
    #[expect(clippy::type_complexity, reason = "as `classes` has them")]
    fn uplink(&mut self, port: &Link) -> Result<Option<(Link, Vec<(u32, Rate, Rate, u64)>)>, Error> {
        let links = self.links()?;
        let others = links.values().filter(|link| {
            link.master.is_some()
                && link.master == port.master
                && link.index != port.index
                && link.tap.is_none()
        });
        for link in others {
            let classes = self.classes(link)?;
            if classes.iter().any(|(handle, ..)| *handle == OTHERS) {
                return Ok(Some((link.clone(), classes)));
            }
        }
        Ok(None)
    }

    /// One class for everything, at an interface.
    fn shape(&mut self, link: &Link, max: Rate, burst: u64) -> Result<(), Error> {
        self.qdisc(link, ONLY)?;
        self.class(link, HANDLE, ONLY, (max, max), burst)?;
        // What waits in it: bytes, not packets, which may be of 64 KiB.
        let waiting = u32::try_from((max.0 / 10).clamp(*WAITING.start(), *WAITING.end())).unwrap_or(u32::MAX);
        let queue =
            header(link.index, 0x10_0000, ONLY, 0).text(TCA_KIND, "bfifo").number(TCA_OPTIONS, waiting);
        let done = self.netlink.order(RTM_NEWQDISC, CREATE | REPLACE, &queue);
        done.map_err(|error| Error::of(format!("limit {}", link.name), "sch_fifo", error))
    }

    /// An HTB scheduler at an interface; `others` is the class of what is given none.
    fn qdisc(&mut self, link: &Link, others: u32) -> Result<(), Error> {
        if self.has_qdisc(link, "htb")? {
            return Ok(());
        }
        // struct tc_htb_glob: version, rate to quantum, class of the others, debug, packets
        let global = [3, 10, others & 0xffff, 0, 0].map(u32::to_ne_bytes).concat();
        let options = Payload::default().add(TCA_HTB_INIT, &global);
        let message = header(link.index, HANDLE, ROOT, 0).text(TCA_KIND, "htb").nest(TCA_OPTIONS, &options);
        let done = self.netlink.order(RTM_NEWQDISC, CREATE | REPLACE, &message);
        done.map_err(|error| module(format!("limit {}", link.name), "sch_htb", error))
    }

    fn class(
        &mut self,
        link: &Link,
        parent: u32,
        handle: u32,
        rates: (Rate, Rate),
        burst: u64,
    ) -> Result<(), Error> {
        let message = header(link.index, handle, parent, 0);
        let message = message.text(TCA_KIND, "htb").nest(TCA_OPTIONS, &htb(rates.0, rates.1, burst));
        let done = self.netlink.order(RTM_NEWTCLASS, CREATE | REPLACE, &message);
        done.map_err(|error| module(format!("limit {}", link.name), "sch_htb", error))
    }

    fn drop_class(&mut self, link: &Link, handle: u32) -> Result<(), Error> {
        match self.netlink.order(RTM_DELTCLASS, 0, &header(link.index, handle, 0, 0)) {
            Ok(()) | Err(Errno::ENOENT) => Ok(()),
            Err(error) => Err(Error::of(format!("change what {} promises", link.name), "", error)),
        }
    }

    /// Everything that comes from a port gets a priority, or goes to another interface, or both. What was before is replaced.
    fn divert(&mut self, port: &Link, priority: Option<u32>, to: Option<u32>) -> Result<(), Error> {
        let what = || format!("limit what comes from {}", port.name);
        if !self.has_qdisc(port, "ingress")? {
            let message = header(port.index, INGRESS_HANDLE, INGRESS, 0).text(TCA_KIND, "ingress");
            let done = self.netlink.order(RTM_NEWQDISC, CREATE, &message);
            done.map_err(|error| module(what(), "sch_ingress", error))?;
        }
        // struct tc_u32_sel with one key that everything matches; 1 is TC_U32_TERMINAL.
        let selector = [&[1, 0, 1][..], &[0; 13], &[0; 16]].concat();
        let options =
            Payload::default().add(TCA_U32_SEL, &selector).nest(TCA_U32_ACT, &actions(priority, to));
        // Priority 1; ETH_P_ALL, as it is on the wire. A handle of its own, so that it can be found and replaced.
        let (everything, handle) = (1 << 16 | u32::from(3_u16.to_be()), 0x8000_0800);
        let message = |handle| {
            header(port.index, handle, INGRESS_HANDLE, everything)
                .text(TCA_KIND, "u32")
                .nest(TCA_OPTIONS, &options)
        };
        let done = match self.netlink.order(RTM_NEWTFILTER, CREATE | REPLACE, &message(handle)) {
            // There is none yet that could be replaced, and the kernel gives the first one this handle.
            Err(Errno::EINVAL | Errno::ENOENT | Errno::EEXIST) => {
                self.netlink.order(RTM_NEWTFILTER, CREATE, &message(0))
            }
            done => done,
        };
        done.map_err(|error| module(what(), "act_mirred, act_skbedit and cls_u32", error))
    }

    fn has_qdisc(&mut self, link: &Link, kind: &str) -> Result<bool, Error> {
        let found = self.netlink.dump(RTM_GETQDISC, &header(link.index, 0, 0, 0));
        let found = found.map_err(|error| Error::of("list the limits", "", error))?;
        Ok(found.iter().any(|(_, payload)| {
            of_link(link.index, payload).is_some_and(|(_, handle, rest)| {
                let is_ours = kind != "htb" || handle == HANDLE;
                is_ours && attribute(rest, TCA_KIND).map(text).as_deref() == Some(kind)
            })
        }))
    }

    /// The HTB classes of an interface: handle, rate, ceiling, burst.
    fn classes(&mut self, link: &Link) -> Result<Vec<(u32, Rate, Rate, u64)>, Error> {
        let found = self.netlink.dump(RTM_GETTCLASS, &header(link.index, 0, 0, 0));
        let found = found.map_err(|error| Error::of("list the limits", "", error))?;
        let class = |payload: &[u8]| {
            let (_, handle, rest) = of_link(link.index, payload)?;
            let (rate, ceiling, burst) = read_htb(attribute(rest, TCA_OPTIONS)?)?;
            Some((handle, rate, ceiling, burst))
        };
        Ok(found.iter().filter_map(|(_, payload)| class(payload)).collect())
    }
}

impl Limit {
    /// For people.
    pub fn shown(&self) -> String {
        let min = self.min.map(|min| format!("at least {min}"));
        let burst = self.burst.map(|burst| format!(" (bursts of {} KiB)", burst / 1024)).unwrap_or_default();
        let max = self.max.map(|max| format!("at most {max}{burst}"));
        let parts: Vec<String> = min.into_iter().chain(max).collect();
        if parts.is_empty() { "no limit".to_owned() } else { parts.join(" and ") }
    }
}

/// The class of a port at the uplink of its bridge.
fn class_of(port: &Link) -> u32 {
    HANDLE | (FIRST_PORT + port.index % (0xffff - FIRST_PORT))
}

/// A module that is not there is "no such file" to the kernel's packet schedulers.
fn module(what: String, module: &'static str, error: Errno) -> Error {
    let error = if error == Errno::ENOENT { Errno::EOPNOTSUPP } else { error };
    Error::of(what, module, error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_reads_like_a_sentence() {
        let mbit = |n: u64| Some(Rate(n * 125_000));
        let limit = Limit { min: mbit(10), max: mbit(100), burst: Some(1 << 20) };
        assert_eq!(limit.shown(), "at least 10Mbit and at most 100Mbit (bursts of 1024 KiB)");
        assert_eq!(Limit::default().shown(), "no limit");
    }
}
