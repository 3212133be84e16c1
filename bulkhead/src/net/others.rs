//! Packet schedulers that somebody else has set up: they are left alone.

use super::limit::{HANDLE, INGRESS, INGRESS_HANDLE, ROOT, RTM_GETQDISC, TCA_KIND, header, of_link};
use super::netlink::{attribute, text};
use super::switch::{Error, Link, Network};

const RTM_GETTFILTER: u16 = 46;

/// Whether a scheduler is nobody's: neither ours nor one that the kernel gives every interface, which has no handle.
fn is_others(parent: u32, handle: u32, kind: &str) -> bool {
    match parent {
        ROOT => handle != 0 && (kind, handle) != ("htb", HANDLE),
        INGRESS => kind != "ingress",
        _ => false,
    }
}

impl Network {
    /// Whether what schedules the packets of an interface may be changed here; else whose it is, and what to do.
    pub(super) fn is_ours(&mut self, link: &Link) -> Result<(), Error> {
        let name = &link.name;
        let failed = |error| Error::of("list the limits", "", error);
        let mut has_ingress = false;
        for (_, payload) in self.netlink.dump(RTM_GETQDISC, &header(link.index, 0, 0, 0)).map_err(failed)? {
            let Some((parent, handle, rest)) = of_link(link.index, &payload) else { continue };
            let kind = attribute(rest, TCA_KIND).map(text).unwrap_or_default();
            has_ingress |= parent == INGRESS;
            if is_others(parent, handle, &kind) {
                let place = if parent == ROOT { "root" } else { kind.as_str() };
                return Err(Error::Other(format!(
                    "{name} has a packet scheduler that is not Bulkhead's ({kind} {:x}:), and keeps it: to have one of Bulkhead's \
                     instead, remove it (sudo tc qdisc del dev {name} {place})",
                    handle >> 16
                )));
            }
        }
        if !has_ingress {
            return Ok(());
        }
        for (_, payload) in
            self.netlink.dump(RTM_GETTFILTER, &header(link.index, 0, INGRESS_HANDLE, 0)).map_err(failed)?
        {
            let Some((.., rest)) = of_link(link.index, &payload) else { continue };
            let kind = attribute(rest, TCA_KIND).map(text).unwrap_or_default();
            if kind != "u32" {
                return Err(Error::Other(format!(
                    "{name} has a filter of packets that is not Bulkhead's ({kind}), and keeps it: to limit {name} here, remove it \
                     (sudo tc qdisc del dev {name} ingress)"
                )));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_gives_and_what_we_give_is_ours() {
        for (parent, handle, kind) in [
            (ROOT, 0, "mq"),
            (ROOT, 0, "noqueue"),
            (ROOT, HANDLE, "htb"),
            (1, 0x8001_0000, "fq_codel"),
            (INGRESS, INGRESS_HANDLE, "ingress"),
        ] {
            assert!(!is_others(parent, handle, kind), "{kind} {handle:x}");
        }
        for (parent, handle, kind) in [
            (ROOT, 0x8001_0000, "tbf"),
            (ROOT, 0x2_0000, "htb"),
            (ROOT, HANDLE, "prio"),
            (INGRESS, INGRESS_HANDLE, "clsact"),
        ] {
            assert!(is_others(parent, handle, kind), "{kind} {handle:x}");
        }
    }
}
