//! `bulkhead net` against a real kernel, in a network namespace of the test's own: what is made is there, and what is there is left alone.
//! Takes root (for the namespace) and says so where there is none.
#![allow(clippy::unwrap_used, missing_docs)]

use std::process::{Command, Output};

use nix::sched::{CloneFlags, unshare};

/// Puts this test's thread, and so its children, into a new network. `false`: it may not.
fn new_network() -> bool {
    match unshare(CloneFlags::CLONE_NEWNET) {
        Ok(()) => true,
        Err(error) => {
            eprintln!("SKIPPED: a network namespace takes root here ({error})");
            false
        }
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn bulkhead(words: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bulkhead"));
    command.arg("net").args(words.split_whitespace()).output().unwrap()
}

/// What it says; it must succeed.
fn done(words: &str) -> String {
    let output = bulkhead(words);
    assert!(output.status.success(), "bulkhead net {words}: {}", text(&output.stderr));
    text(&output.stdout)
}

fn refused(words: &str) -> String {
    let output = bulkhead(words);
    assert!(!output.status.success(), "bulkhead net {words}: {}", text(&output.stdout));
    text(&output.stderr)
}

/// Whether this kernel lacks what the command takes; it says so then.
fn lacks(words: &str) -> bool {
    let output = bulkhead(words);
    let said = text(&output.stderr);
    let lacks = !output.status.success()
        && (said.contains("this kernel cannot") || said.contains("the kernel needs"));
    if lacks {
        eprintln!("SKIPPED: {said}");
    } else {
        assert!(output.status.success(), "bulkhead net {words}: {said}");
    }
    lacks
}

fn ip(words: &str) -> String {
    let output = Command::new("ip").args(words.split_whitespace()).output().unwrap();
    assert!(output.status.success(), "ip {words}: {}", text(&output.stderr));
    text(&output.stdout)
}

fn ports() -> Vec<serde_json::Value> {
    serde_json::from_str(&done("ls --json")).unwrap()
}

fn port(name: &str) -> serde_json::Value {
    ports().into_iter().find(|port| port["port"] == name).unwrap_or_default()
}

#[test]
fn a_bridge_and_a_port_are_made_once_and_shown() {
    if !new_network() || lacks("bridge add br0") {
        return;
    }
    assert_eq!(done("bridge add br0"), "as it was\n");
    let made = done("port add tap0 --bridge br0 --owner 1234");
    assert_eq!(made, "tap0 was made, for user 1234\ntap0 is a port of br0\ntap0 is up\n");
    assert_eq!(done("port add tap0 --bridge br0 --owner 1234"), "as it was\n");
    assert_eq!(done("port add tap0"), "as it was\n", "what is not said stays");
    let shown = port("tap0");
    assert_eq!(
        (&shown["bridge"], &shown["kind"], &shown["owner"]),
        (&"br0".into(), &"tap".into(), &1234.into())
    );
    assert_eq!((&shown["state"], &shown["queues"]), (&"no-carrier".into(), &0.into()));
    assert!(ip("-d link show tap0").contains("vnet_hdr on multi_queue"), "{}", ip("-d link show tap0"));
    assert_eq!(done("port add tap0 --owner 77"), "tap0 was changed, for user 77\n");
    assert!(done("ls").lines().any(|line| line.starts_with("br0") && line.contains("tap0")));

    assert!(refused("bridge remove br0").contains("has ports: tap0"));
    assert_eq!(done("port remove tap0"), "tap0 was removed\n");
    assert_eq!(done("port remove tap0"), "tap0 was not there\n");
    assert_eq!(done("bridge remove br0"), "br0 was removed\n");
    assert_eq!(done("bridge remove br0"), "br0 was not there\n");
}

#[test]
fn nothing_is_taken_from_whoever_made_it() {
    if !new_network() || lacks("bridge add br0") {
        return;
    }
    ip("link add up0 type veth peer name up1");
    ip("address add 192.0.2.1/24 dev up0");
    assert!(refused("bridge add br0 --uplink up0").contains("up0 has addresses"));
    ip("address flush dev up0");
    assert!(done("bridge add br0 --uplink up0").contains("up0 is a port of br0"));
    assert_eq!(done("bridge add br0 --uplink up0"), "as it was\n");
    assert!(refused("port add up0").contains("no TAP"));
    assert!(refused("port remove up0").contains("no TAP"));
    assert!(refused("bridge add up0").contains("no bridge"));
    let said = refused("bridge add br1 --uplink up0");
    assert!(said.contains("up0 is a port of br0 already"), "{said}");
    for words in ["limit up0 --max 1Mbit", "limit up0 --none", "limit br0 --none"] {
        assert!(refused(words).contains("no TAP"), "{words}");
    }
    assert!(refused("port add t0 --bridge br7").contains("bulkhead net bridge add br7"));
    assert!(refused("limit t7 --max 1Mbit").contains("no port t7"));
    ip("tuntap add old mode tap");
    assert!(refused("port add old").contains("one queue"));
}

#[test]
fn a_tap_that_is_given_to_nobody_is_not_everybodys() {
    if !new_network() {
        return;
    }
    assert_eq!(done("port add tap0"), "tap0 was made, for user 0\ntap0 is up\n");
    assert_eq!(port("tap0")["owner"], 0);
    assert_eq!(done("port add tap0"), "as it was\n");
    // One of somebody else's stays what it was.
    ip("tuntap add old mode tap multi_queue vnet_hdr");
    assert_eq!(done("port add old"), "old is up\n");
    assert!(
        done("ls").lines().any(|line| line.contains("old") && line.contains("anybody")),
        "{}",
        done("ls")
    );
}

#[test]
fn a_vlan_that_would_not_hold_is_refused_before_anything_is_done() {
    if !new_network() || lacks("bridge add br0") {
        return;
    }
    ip("link add flat type bridge");
    let said = refused("port add tap0 --bridge flat --vlan 10");
    assert!(said.contains("flat does not tell VLANs apart") && said.contains("bridge add flat"), "{said}");
    assert!(refused("port add tap0 --vlan 10").contains("--bridge"));
    assert_eq!(port("tap0"), serde_json::Value::Null);
    done("port add tap1 --bridge flat");
    assert!(refused("port add tap1 --vlan 10").contains("does not tell VLANs apart"));
}

#[test]
fn a_scheduler_of_somebody_elses_is_left_alone() {
    if !new_network() {
        return;
    }
    done("port add tap0");
    let tc = |words: &str| Command::new("tc").args(words.split_whitespace()).output();
    if !tc("qdisc add dev tap0 root handle 5: pfifo limit 7").is_ok_and(|output| output.status.success()) {
        eprintln!("SKIPPED: there is no tc here, or no scheduler");
        return;
    }
    for words in ["limit tap0 --max 1Mbit", "limit tap0 --none"] {
        let said = refused(words);
        assert!(said.contains("pfifo 5:") && said.contains("tc qdisc del dev tap0 root"), "{said}");
    }
    let shown = text(&tc("qdisc show dev tap0").unwrap().stdout);
    assert!(shown.contains("pfifo 5:"), "{shown}");
}

#[test]
fn vlans_of_a_port_are_exactly_those_that_were_said() {
    if !new_network() || lacks("bridge add br0") {
        return;
    }
    if lacks("port add tap0 --bridge br0 --vlan 10") {
        return;
    }
    assert_eq!((&port("tap0")["vlan"], &port("tap0")["trunk"]), (&10.into(), &serde_json::json!([])));
    assert_eq!(done("port add tap0 --bridge br0 --vlan 10"), "as it was\n");
    assert_eq!(done("port add tap0 --trunk 10,20-22"), "tap0 is in trunk 10,20-22\n");
    assert_eq!(port("tap0")["vlan"], serde_json::Value::Null);
    assert_eq!(done("port add tap0 --vlan 5 --trunk 20"), "tap0 is in VLAN 5, trunk 20\n");
    assert_eq!(done("port add tap0 --vlan 5 --trunk 20"), "as it was\n");
    assert!(done("ls").contains("5+20"));
}

#[test]
fn a_limit_is_set_changed_shown_and_taken_away() {
    if !new_network() {
        return;
    }
    done("port add tap0");
    if lacks("limit tap0 --max 100Mbit") {
        assert_eq!(port("tap0")["max"], serde_json::Value::Null, "not half of it");
        assert!(!ip("-o link show").contains("bh-in-"));
        return;
    }
    assert_eq!(done("limit tap0 --max 100Mbit"), "as it was\n");
    assert_eq!(port("tap0")["max"], 100_000_000);
    assert_eq!(
        done("limit tap0 --max 40Mbit --burst 256KiB"),
        "tap0 gets at most 40Mbit (bursts of 256 KiB)\n"
    );
    let shown = port("tap0");
    assert_eq!(shown["max"], 40_000_000);
    let burst = shown["burst"].as_u64().unwrap();
    assert!(burst.abs_diff(256 << 10) < 3000, "{burst}");
    // Both directions: a class here, and one at the other interface that everything from here is sent to.
    let links = ip("-o link show");
    assert!(links.contains("bh-in-"), "{links}");
    assert!(refused("limit tap0 --min 10Mbit").contains("no uplink of a known capacity"));
    assert_eq!(done("limit tap0 --none"), "tap0 gets no limit\n");
    assert_eq!(done("limit tap0 --none"), "as it was\n");
    assert!(!ip("-o link show").contains("bh-in-"));
    // A port takes its limits with it.
    done("limit tap0 --max 100Mbit");
    done("port remove tap0");
    assert!(!ip("-o link show").contains("bh-in-"));
}

#[test]
fn what_is_promised_can_be_kept() {
    if !new_network() || lacks("bridge add br0") {
        return;
    }
    ip("link add up0 type veth peer name up1");
    if lacks("bridge add br0 --uplink up0 --capacity 1Gbit") {
        return;
    }
    assert_eq!(done("bridge add br0 --uplink up0 --capacity 1Gbit"), "as it was\n");
    done("port add tap0 --bridge br0");
    done("port add tap1 --bridge br0");
    let none = serde_json::Value::Null;
    assert!(refused("limit tap0 --min 2Gbit").contains("cannot be promised"));
    if lacks("limit tap0 --min 600Mbit --max 900Mbit") {
        assert_eq!((&port("tap0")["min"], &port("tap0")["max"]), (&none, &none), "not half of it");
        return;
    }
    assert_eq!((&port("tap0")["min"], &port("tap0")["max"]), (&600_000_000.into(), &900_000_000.into()));
    assert_eq!(done("limit tap0 --min 600Mbit --max 900Mbit"), "as it was\n");
    assert!(refused("limit tap1 --min 500Mbit").contains("600Mbit are promised to others"));
    done("limit tap1 --min 400Mbit");
    // What is promised of one uplink is nothing at another one.
    done("bridge add br1");
    assert!(done("port add tap1 --bridge br1").contains("tap1 is promised nothing any more"));
    done("port add tap1 --bridge br0");
    assert_eq!(port("tap1")["min"], none);
    done("limit tap1 --min 400Mbit");
    done("limit tap0 --none");
    assert_eq!(port("tap0")["min"], serde_json::Value::Null);
}

#[test]
fn looking_takes_no_rights_and_an_empty_network_is_said_to_be_empty() {
    if !new_network() {
        return;
    }
    assert!(done("ls").contains("no bridge and no TAP"));
    assert!(ports().is_empty());
}
