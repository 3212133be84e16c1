use clap::Parser;

use super::super::ls::{Line, document, table};
use super::super::port;
use super::super::switch::{Link, Tap};
use super::*;

#[derive(Parser)]
struct Words {
    #[command(subcommand)]
    command: Command,
}

fn parsed(words: &str) -> Result<Command, String> {
    let words = std::iter::once("net").chain(words.split_whitespace());
    Words::try_parse_from(words).map(|words| words.command).map_err(|error| error.to_string())
}

#[test]
fn what_makes_no_sense_is_refused_with_a_reason() {
    for (words, why) in [
        ("port add a/b", "may not contain"),
        ("port add -- -b", "may not begin with '-'"),
        ("port add t0 --vlan 4095", "1 to 4094"),
        ("port add t0 --trunk 9-3", "3-9"),
        ("bridge add br0 --capacity 1Gbit", "--uplink"),
        ("limit t0", "--max"),
        ("limit t0 --max 100", "100Mbit"),
        ("limit t0 --none --max 1Mbit", "cannot be used with"),
        ("limit t0 --min 1Mbit --burst 64KiB", "--max"),
        ("link debian nic0 sideways", "up, down"),
    ] {
        let said = parsed(words).unwrap_err();
        assert!(said.contains(why), "{words}: {said}");
    }
    let Command::Limit(limit) = parsed("limit t0 --max 100Mbit --min 1Mbit --burst 256KiB").unwrap() else {
        panic!()
    };
    assert_eq!(
        (limit.max, limit.min, limit.burst),
        (Some(Rate(12_500_000)), Some(Rate(125_000)), Some(256 << 10))
    );
}

#[test]
fn a_table_shows_a_port_a_line() {
    let tap = Link {
        name: "tap0".into(),
        is_up: true,
        tap: Some(Tap { owner: Some(4_000_000_001), queues: 4, ..Default::default() }),
        ..Link::default()
    };
    let limit = Limit { min: None, max: Some(Rate(12_500_000)), burst: Some(128 << 10) };
    let vlans = [(5, 6), (10, 0), (11, 0)].into_iter().collect();
    let lines = [
        Line { bridge: "br0".into(), port: Some(tap), vlans, limit },
        Line { bridge: "br1".into(), port: None, vlans: port::Vlans::new(), limit: Limit::default() },
    ];
    assert_eq!(
        table(&lines),
        "BRIDGE  PORT  KIND  OWNER       QUEUES  STATE       VLAN     MIN  MAX      BURST\n\
         br0     tap0  tap   4000000001  4       no-carrier  5+10-11  -    100Mbit  128 KiB\n\
         br1     -     -     -           -       -           -        -    -        -\n"
    );
    let shown = document(&lines[0]);
    assert_eq!(shown["trunk"], json!([10, 11]));
    let unowned = Link { name: "t1".into(), tap: Some(Tap::default()), ..Link::default() };
    let line =
        Line { bridge: "-".into(), port: Some(unowned), vlans: port::Vlans::new(), limit: Limit::default() };
    assert!(table(&[line]).contains("anybody"), "a TAP without an owner is everybody's");
    assert_eq!(
        (&shown["max"], &shown["vlan"], &shown["state"]),
        (&json!(100_000_000), &json!(5), &json!("no-carrier"))
    );
}

#[test]
fn users_are_named_or_numbered() {
    assert_eq!(user("root").unwrap(), 0);
    assert_eq!(user("1234").unwrap(), 1234);
    assert!(user("no-such-user-here").unwrap_err().to_string().contains("VM:DEVICE"));
    assert!(user("no-such-vm:nic0").unwrap_err().to_string().contains("bulkhead units"));
}
