//! In which order the kernel is to try its ways to reset a device, so that the first one that it has leaves nothing of the device's last user.
//!
//! VFIO has a device reset when it is opened and when it is closed, by the first method of the file `reset_method` that the device has (Linux 5.15,
//! `Documentation/ABI/testing/sysfs-bus-pci`). By default `pm` is ahead of `bus`. That one turns the device off and on again by its power states,
//! and not every device that says that it forgets everything by that does: seen with QEMU's `e1000e`, which after a VM that had
//! crashed wrote frames into the next VM's memory, at the places where the first one had had its buffers.

/// Off and on again,
const POWER: &str = "pm";
/// and the bus that nobody else is on.
const BUS: &str = "bus";

/// A better order, if the first method is the power states and need not be. What is ahead of those (a reset of the function, say) is as good as the bus.
pub fn better(methods: &str) -> Option<String> {
    let mut names: Vec<&str> = methods.split_whitespace().collect();
    let is_weak = names.first() == Some(&POWER) && names.contains(&BUS);
    is_weak.then(|| {
        names.rotate_left(1);
        names.join(" ")
    })
}

/// What undoes [`better`]; `None`: it was not done.
pub fn usual(methods: &str) -> Option<String> {
    let mut names: Vec<&str> = methods.split_whitespace().collect();
    let is_ours = names.first() == Some(&BUS) && names.last() == Some(&POWER);
    is_ours.then(|| {
        names.rotate_right(1);
        names.join(" ")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bus_comes_before_the_power() {
        assert_eq!(better("pm bus\n").as_deref(), Some("bus pm"));
        assert_eq!(better("pm bus cxl_bus").as_deref(), Some("bus cxl_bus pm"));
        for fine in ["", "\n", "flr", "pm", "bus", "flr bus", "bus pm", "flr pm bus", "pm cxl_bus"] {
            assert_eq!(better(fine), None, "{fine}");
        }
    }

    #[test]
    fn what_was_changed_is_changed_back() {
        for methods in ["pm bus", "pm bus cxl_bus"] {
            assert_eq!(usual(&better(methods).unwrap()).as_deref(), Some(methods));
        }
        for others in ["", "pm bus", "flr pm", "flr bus pm", "flr pm bus", "pm", "bus"] {
            assert_eq!(usual(others), None, "{others}");
        }
    }
}
