//! Mistakes about NICs.

use super::super::net::{Backend, Exposure, Mac, examine, own_address};
use super::*;
use crate::net::switch::{Link, Tap};

fn with(net: &str) -> String {
    format!("{GOOD}[[net]]\n{net}")
}

#[test]
fn a_nic_is_connected_to_passt_unless_something_else_is_said() {
    let files = Files::new("net-good");
    let (spec, report) = files.parse(&with("name = \"nic0\"\n"));
    assert!(report.is_empty(), "{report}");
    let net = spec.unwrap().net.remove(0);
    assert_eq!((net.backend, net.queues, net.mtu), (Backend::Passt, 1, 1500));
    assert_eq!(
        (net.mac, net.memory, net.antispoof, net.link, net.spare),
        (None, Exposure::Confined, false, true, false)
    );
    let all = "name = \"nic0\"\nbackend = \"passt\"\nmac = \"02-00-00-AA-bb-01\"\nqueues = 2\nmemory = \"full\"\n\
        antispoof = true\nmtu = 9000\nlink = \"down\"\nspare = true\n";
    let (spec, report) = files.parse(&with(all));
    let net = spec.unwrap_or_else(|| panic!("{report}")).net.remove(0);
    assert_eq!(net.mac.map(|mac| mac.to_string()).as_deref(), Some("02:00:00:aa:bb:01"));
    assert_eq!((net.queues, net.memory, net.mtu), (2, Exposure::Full, 9000));
    assert!(net.antispoof && !net.link && net.spare);
}

#[test]
fn every_mistake_about_a_nic_has_a_place_and_a_fix() {
    let files = Files::new("net-wrong");
    for (net, place, message, fix) in [
        ("", "13:1", "`name` is missing in [[net]]", "add name = \"nic0\""),
        (
            "name = \"disk0\"",
            "14:8",
            "device 1 is called \"disk0\" already",
            "give each device a name of its own: \"nic1\"",
        ),
        ("name = \"core\"", "14:8", "cannot be called \"core\"", "call it \"nic1\""),
        (
            "name = \"a\"\nmac = \"02:00\"",
            "15:7",
            "`mac` is no Ethernet address: \"02:00\"",
            "write six bytes",
        ),
        (
            "name = \"a\"\nmac = \"03:00:00:00:00:01\"",
            "15:7",
            "`mac` is a group's address",
            "even: \"02:00:00:00:00:01\"",
        ),
        ("name = \"a\"\nmac = \"00:00:00:00:00:00\"", "15:7", "all zeros", "write six bytes"),
        (
            "name = \"a\"\nmtu = 9001",
            "15:7",
            "`mtu` must be from 68 to 9000, not 9001",
            "write a number from 68 to 9000",
        ),
        (
            "name = \"a\"\nqueues = 3",
            "15:10",
            "3 queues are more than the VM has processors (2)",
            "write queues = 2",
        ),
        ("name = \"a\"\nqueues = 9", "15:10", "must be from 1 to 8", "write a number"),
        ("name = \"a\"\nmemory = \"1GiB\"", "15:10", "`memory` cannot be \"1GiB\"", "\"confined\""),
        ("name = \"a\"\nlink = \"off\"", "15:8", "`link` cannot be \"off\"", "write \"up\" or \"down\""),
        ("name = \"a\"\nlink = true", "15:8", "must be a string", "link = "),
        (
            "name = \"a\"\nbackend = \"tap\"",
            "15:11",
            "`backend` cannot be \"tap\"",
            "write tap = \"tap0\" instead",
        ),
        ("name = \"a\"\nbackend = \"slirp\"", "15:11", "cannot be \"slirp\"", "write \"passt\""),
        (
            "name = \"a\"\nbackend = \"passt\"\ntap = \"t0\"",
            "16:7",
            "a NIC has one other end",
            "keep one of them",
        ),
        (
            "name = \"a\"\ntap = \"t0\"\nmacvtap = \"m0\"",
            "16:11",
            "a NIC has one other end",
            "keep one of them",
        ),
        ("name = \"a\"\ntap = \"../../etc\"", "15:7", "`tap` may not contain '/'", "use up to 15"),
        ("name = \"a\"\ntap = \"a-name-that-is-too-long\"", "15:7", "longer than 15", "use up to 15"),
        (
            "name = \"a\"\ntap = \"bh-not-here\"",
            "15:7",
            "the tap bh-not-here does not exist",
            "bulkhead net port add bh-not-here",
        ),
        ("name = \"a\"\ntap = \"lo\"", "15:7", "the tap lo is no TAP", "bulkhead net port add"),
        ("name = \"a\"\nmacvtap = \"lo\"", "15:11", "the macvtap lo is no macvtap", "tap = \"lo\""),
        (
            "name = \"a\"\nantispof = true",
            "15:1",
            "there is no `antispof` in [[net]]",
            "did you mean `antispoof`?",
        ),
        ("name = \"a\"\nlun = 1", "15:1", "there is no `lun` in [[net]]", "belongs in [[storage.disk]]"),
    ] {
        let (found_at, found, found_fix) = files.only(&with(net));
        assert_eq!(found_at, format!("vm.toml:{place}"), "{net}: {found}");
        assert!(found.contains(message), "{net}: {found}");
        assert!(found_fix.contains(fix), "{net}: {found_fix}");
    }
    let twice =
        "name = \"a\"\nmac = \"02:00:00:00:00:01\"\n[[net]]\nname = \"b\"\nmac = \"02:00:00:00:00:01\"\n";
    assert!(files.only(&with(twice)).1.contains("is the address of a already"));
}

#[test]
fn units_are_written_before_the_taps_are_there() {
    let files = Files::new("net-units");
    let parse = |net: &str| {
        let host = HostLimits { disks_in_use: true, ..HostLimits::default() };
        parse(Path::new("vm.toml"), &with(net), &files.0, host)
    };
    let (spec, report) =
        parse("name = \"a\"\ntap = \"bh-not-here\"\n[[net]]\nname = \"b\"\ntap = \"bh-nor-there\"\n");
    let net = spec.unwrap_or_else(|| panic!("{report}")).net;
    assert_eq!((net.len(), net[0].queues), (2, 2), "a queue a processor");
    let (spec, report) = parse("name = \"a\"\ntap = \"t0\"\n[[net]]\nname = \"b\"\ntap = \"t0\"\n");
    assert!(spec.is_none() && report.to_string().contains("t0 is at the end of a already"), "{report}");
}

#[test]
fn interfaces_are_what_the_kernel_says() {
    let link = |name: &str, kind: &str, tap: Option<bool>| Link {
        name: name.to_owned(),
        kind: kind.to_owned(),
        mac: "02:00:00:00:00:07".to_owned(),
        tap: tap.map(|is_multi_queue| Tap { is_multi_queue, ..Tap::default() }),
        ..Link::default()
    };
    let links = [
        link("tap0", "tun", Some(true)),
        link("tap1", "tun", Some(false)),
        link("tun0", "tun", None),
        link("mv0", "macvtap", None),
    ];
    let tap = |name: &str| examine(&links, &Backend::Tap(name.to_owned()));
    assert_eq!((tap("tap0"), tap("tap1")), (Ok(Some(true)), Ok(Some(false))));
    assert!(tap("tun0").unwrap_err().0.contains("no TAP"));
    assert_eq!(tap("tpa0").unwrap_err().1, "did you mean \"tap0\"?");
    assert!(tap("mv0").unwrap_err().1.contains("macvtap = \"mv0\""));
    let macvtap = Backend::Macvtap("mv0".to_owned());
    assert_eq!(examine(&links, &macvtap), Ok(None));
    assert_eq!(own_address(&links, &macvtap), Some(Mac([2, 0, 0, 0, 0, 7])));
}
