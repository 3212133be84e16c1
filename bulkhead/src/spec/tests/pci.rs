//! Mistakes about PCI devices. What the host has to say about one is tried with a made-up host (`pci::tests`).

use super::super::pci::usual_name;
use super::*;

#[test]
fn every_mistake_about_a_pci_device_has_a_place_and_a_fix() {
    let files = Files::new("pci-wrong");
    for (pci, place, message, fix) in [
        ("", "13:1", "`address` is missing in [[pci]]", "add address = \"0000:03:00.0\""),
        ("address = \"eth0\"", "14:11", "`address` is no PCI address: \"eth0\"", "\"0000:03:00.0\""),
        ("adress = \"03:00.0\"", "14:1", "there is no `adress` in [[pci]]", "did you mean `address`?"),
        (
            "address = \"ffff7777:e3:1f.7\"",
            "14:11",
            "there is no PCI device ffff7777:e3:1f.7",
            "bulkhead pci ls",
        ),
    ] {
        let text = files.told(&format!("{GOOD}[[pci]]\n{pci}\n"));
        for part in [place, message, fix] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }
}

#[test]
fn a_device_is_called_as_its_place() {
    let name = |address: &str| usual_name(address.parse().unwrap());
    assert_eq!(name("0000:03:00.0"), "pci-03-00-0");
    assert_eq!(name("10000:e1:1f.7"), "pci-10000-e1-1f-7");
}
