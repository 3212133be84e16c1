//! In which order the kernel tries its ways to reset a device, so that the first one that it has leaves nothing of the device's last user.
//!
//! VFIO resets a device when it is opened and when it is closed, by the first method of the file `reset_method` that works (Linux 5.15,
//! `Documentation/ABI/testing/sysfs-bus-pci`). By default `pm` is ahead of `bus`. That one turns the device off and on again by its power states,
//! and not every device that says that it forgets everything by that does: seen with QEMU's `e1000e`, which after a VM that had
//! crashed wrote frames into the next VM's memory, at the places where the first one had had its buffers. A reset of the bus forgets all.

/// Off and on again,
const POWER: &str = "pm";
/// and the bus that nobody else is on.
const BUS: &str = "bus";

/// What has the kernel decide by itself.
const DEFAULT: &str = "default";

/// The methods in a better order; `None`: it is as good as it can be.
pub fn better(methods: &str) -> Option<String> {
    let mut names: Vec<&str> = methods.split_whitespace().collect();
    let power = names.iter().position(|name| *name == POWER)?;
    if !names[power..].contains(&BUS) {
        return None;
    }
    names.remove(power);
    names.push(POWER);
    Some(names.join(" "))
}

/// Whether the first of them is power states, and need not be.
pub fn is_weak(methods: &str) -> bool {
    methods.split_whitespace().next() == Some(POWER) && better(methods).is_some()
}

/// What undoes [`better`]; `None`: it was not done.
pub fn usual(methods: &str) -> Option<String> {
    let names: Vec<&str> = methods.split_whitespace().collect();
    (names.last() == Some(&POWER) && names.contains(&BUS)).then(|| DEFAULT.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bus_comes_before_the_power() {
        assert_eq!(better("pm bus\n").as_deref(), Some("bus pm"));
        assert_eq!(better("flr pm bus").as_deref(), Some("flr bus pm"));
        for fine in ["", "\n", "flr", "pm", "bus", "flr bus", "bus pm", "flr pm", "cxl_bus pm"] {
            assert_eq!(better(fine), None, "{fine}");
        }
    }

    #[test]
    fn what_comes_behind_another_way_is_no_matter() {
        assert!(is_weak("pm bus\n"));
        assert!(!["", "pm", "flr pm bus", "bus pm", "bus"].into_iter().any(is_weak));
    }

    #[test]
    fn only_what_was_changed_is_changed_back() {
        assert_eq!(usual(&better("flr pm bus").unwrap()).as_deref(), Some(DEFAULT));
        assert!(
            ["", "pm bus", "flr pm", "flr bus", "pm"].into_iter().all(|methods| usual(methods).is_none())
        );
    }
}
