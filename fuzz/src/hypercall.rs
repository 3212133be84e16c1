//! Hypercalls that the core answers.

use std::sync::LazyLock;

use core_vmm::{hypercall::retarget, memory::Ram};

/// One page, and one behind which nothing is.
static RAM: LazyLock<Ram> = LazyLock::new(|| Ram::new(1 << 20, false).expect("memory"));

/// A hypercall's control word, where its input lies in the page, and what lies there.
pub fn hypercall(data: &[u8]) {
    let Some((control, data)) = data.split_first_chunk() else { return };
    let Some((input, data)) = data.split_first_chunk() else { return };
    let (control, input) = (u64::from_le_bytes(*control), u64::from_le_bytes(*input));
    let mut page = [0; 4096];
    for (to, from) in page.iter_mut().zip(data) {
        *to = *from;
    }
    RAM.write(0, &page).expect("it is there");
    if let Ok(found) = retarget(&RAM, control, input) {
        assert!(found.vp < 64 * 64, "{found:?}");
        assert_eq!(retarget(&RAM, control, input), Ok(found));
    }
}
